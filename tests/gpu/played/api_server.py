"""LMDeploy's api_server of a played box: its own reading of the command line, and no engine."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lmdeploy.cli.cli import CLI
from lmdeploy.cli.serve import SubCliServe


class _Completions(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions"
        assert body["stream"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        self.wfile.write(b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    """Serve until something ends it."""
    CLI.add_parsers()
    SubCliServe.add_parsers()
    options = CLI.parser.parse_args(sys.argv[1:])
    assert options.session_len > 0
    assert 0 < options.cache_max_entry_count < 1
    address = (options.server_name, options.server_port)
    ThreadingHTTPServer(address, _Completions).serve_forever()


if __name__ == "__main__":
    main()
