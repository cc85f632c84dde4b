"""A TCP proxy that breaks connections: for the tests of what a client does then."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Breaking:
    """Passes bytes on. `allowed` holds how many bytes of its answer each next connection lets through before
    it is torn; None, and after the last: all. `requests` are the first lines that were sent."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.allowed: list[int | None] = []
        self.requests: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        allowed = self.allowed.pop(0) if self.allowed else None
        assert self.upstream.hostname and self.upstream.port
        server = socket.create_connection((self.upstream.hostname, self.upstream.port))
        up = threading.Thread(target=self._up, args=(client, server), daemon=True)
        up.start()
        passed = 0
        with suppress(OSError):
            while chunk := server.recv(65536):
                if allowed is not None and passed + len(chunk) > allowed:
                    client.sendall(chunk[: allowed - passed])
                    break
                client.sendall(chunk)
                passed += len(chunk)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # close alone would wait for the other thread's recv
        up.join()
        client.close()
        server.close()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while chunk := client.recv(65536):
                if b" HTTP/1.1\r\n" in chunk:
                    self.requests.append(chunk.split(b" HTTP/1.1\r\n")[0].decode())
                server.sendall(chunk)
            server.shutdown(socket.SHUT_WR)


@contextmanager
def breaking(upstream: str) -> Iterator[Breaking]:
    proxy = Breaking(upstream)
    thread = threading.Thread(target=proxy.accept)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
        thread.join(10)
