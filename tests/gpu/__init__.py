"""What only a GPU can show: `make test-gpu`. Nothing here is part of `make test`."""
