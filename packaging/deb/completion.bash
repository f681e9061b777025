# bash completion for edged(1)
# One line a command: its options and the commands below it; tests/unit/test_packaging.py holds it against the program.
_edged_words() {
  case $1 in
    "") echo serve check plan status models reload load unload drain logs pull gc quantize convert export import ask bench doctor report discover key tls setup-cuda version --help ;;
    serve) echo --config --log-level --log-json --help ;;
    check | plan) echo --config --url --json --help ;;
    status) echo --url --json --watch --help ;;
    models) echo inspect --url --config --json --help ;;
    "models inspect") echo --config --json --help ;;
    reload | load | unload | drain) echo --socket --json --help ;;
    logs) echo --lines --follow --socket --help ;;
    pull) echo --all --config --update --yes --help ;;
    gc) echo --config --dry-run --yes --keep-for --help ;;
    quantize) echo --config --out --requantize --help ;;
    convert) echo --config --type --out --converter --python --help ;;
    export) echo --config --help ;;
    import) echo --config --from-ollama --from-hf-cache --help ;;
    ask) echo --model --url --help ;;
    bench) echo --clients --seconds --chart --url --json --help ;;
    doctor) echo --config --socket --json --help ;;
    report) echo --config --socket --output --help ;;
    discover) echo --seconds --interface --json --help ;;
    key) echo add list revoke rotate show-first --help ;;
    "key add") echo --models --rpm --tpm --parallel --networks --expires --config --json --admin --help ;;
    "key list") echo --config --json --help ;;
    "key revoke" | "key show-first") echo --config --help ;;
    "key rotate") echo --config --json --keep-old --expires --help ;;
    tls) echo init show --help ;;
    "tls init") echo --config --quiet --help ;;
    "tls show") echo --config --json --help ;;
    setup-cuda) echo --config --wheelhouse --remove --help ;;
    version) echo --json --help ;;
  esac
}

_edged() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]:-}
  COMPREPLY=()
  ((COMP_CWORD > 1)) || command=
  # `key add`, `tls show`, `models inspect`
  if ((COMP_CWORD > 2)) && [[ -n $(_edged_words "$command ${COMP_WORDS[2]}") ]]; then
    command+=" ${COMP_WORDS[2]}"
  fi
  mapfile -t COMPREPLY < <(compgen -W "$(_edged_words "$command")" -- "$word")
  # Nothing of ours fits: files, as for --config.
  ((${#COMPREPLY[@]})) || mapfile -t COMPREPLY < <(compgen -f -- "$word")
}
complete -o filenames -F _edged edged
