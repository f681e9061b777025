# bash completion for edged(1)
_edged() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]:-}
  case $COMP_CWORD:$command in
    1:*) mapfile -t COMPREPLY < <(compgen -W "serve check status models ask bench reload load unload drain logs key tls doctor report discover version --help" -- "$word") ;;
    2:key) mapfile -t COMPREPLY < <(compgen -W "add list revoke rotate show-first" -- "$word") ;;
    2:tls) mapfile -t COMPREPLY < <(compgen -W "init show" -- "$word") ;;
    *)
      case $word in
        -*) mapfile -t COMPREPLY < <(compgen -W "--config --json --url --help" -- "$word") ;;
        *) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
      esac
      ;;
  esac
}
complete -F _edged edged
