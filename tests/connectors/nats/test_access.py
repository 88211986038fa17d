"""Users, tokens, credentials, permissions, and encryption."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest

from synckit_streams.errors import (
    ConnectorError,
    Unauthorised,
)
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies, heard, read
from synckit_streams.testing.pytest_plugin import lacking
from tests.connectors.nats.kit import (
    configured,
    running,
    texts,
)


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Keys:
    """An NKey, and the JWTs that it signs. Source: https://docs.nats.io (security, JWT, decentralized)."""

    def __init__(self, prefix: int) -> None:
        self.key = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))
        self.public = self.key.public_key.decode()

    def grant(self, to: Keys, kind: str, **claims: object) -> str:
        """What `to` may do, signed by this one."""
        body = {"jti": uuid.uuid4().hex, "iat": int(time.time()), "iss": self.public, "sub": to.public, "name": kind}
        body["nats"] = {"type": kind, "version": 2, **claims}
        parts = [json.dumps(each).encode() for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
        signed = ".".join(map(base64url, parts))
        return f"{signed}.{base64url(self.key.sign(signed.encode()))}"


async def test_a_credentials_file(tmp_path: Path, topic: str) -> None:
    """A user of an account, by JWT and NKey; without it there is no way in."""
    operator, account, system, user = (
        Keys(prefix)
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
        )
    )
    plain = {**dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1), "wildcards": True}
    streams = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    config = (
        f"operator: {operator.grant(operator, 'operator', system_account=system.public)}\n"
        f"resolver: MEMORY\nsystem_account: {system.public}\nresolver_preload: {{\n"
        f"{account.public}: {operator.grant(account, 'account', limits=plain | streams)}\n"
        f"{system.public}: {operator.grant(system, 'account', limits=plain)}\n}}"
    )
    creds = tmp_path / "user.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{account.grant(user, 'user', subs=-1, data=-1, payload=-1)}\n"
        f"------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{user.key.seed.decode()}\n"
        "------END USER NKEY SEED------\n"
    )
    with configured(tmp_path / "server", config) as server:
        async with running(f"{server.url}?creds={creds}") as connector:
            await connector.send(topic, texts("a"))
        with pytest.raises(Unauthorised):
            async with running(server.url):
                pass


LEAST = """
authorization { users: [ { user: "node", password: "x", permissions: {
  subscribe: ["_INBOX.>"]
  publish: [ "sk.>", "skh.>", "skd.>", "$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DELETE.>", "$JS.API.CONSUMER.MSG.NEXT.>",
    "$JS.API.CONSUMER.INFO.>", "$JS.ACK.>" ]
} } ] }
"""

USERS = """
authorization { users: [
  { user: "tom@shop", password: "p:a/s?s w%" }
  { user: "poor", password: "x", permissions: { publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] } }
  { user: "boxed", password: "x", permissions: { publish: [">"], subscribe: ["MINE.>"] } }
] }
"""


async def test_credentials(tmp_path: Path, topic: str) -> None:
    """A percent-encoded user and password are taken; wrong or missing ones are Unauthorised, and never shown."""
    with configured(tmp_path, USERS) as server:
        host = f"127.0.0.1:{server.port}"
        async with running(f"nats://tom%40shop:p%3Aa%2Fs%3Fs%20w%25@{host}") as connector:
            await connector.send(topic, texts("a"))
        for userinfo in ("tom%40shop:geheim@", "", "geheim@"):
            with pytest.raises(Unauthorised) as error:
                async with running(f"nats://{userinfo}{host}"):
                    pass
            assert "geheim" not in str(error.value)


async def test_a_token(tmp_path: Path, topic: str) -> None:
    """In the URL's place for the user, or as an option."""
    with configured(tmp_path, 'authorization { token: "s3cret/" }') as server:
        host = f"127.0.0.1:{server.port}"
        for url, options in ((f"nats://s3cret%2F@{host}", {}), (f"nats://{host}", {"token": "s3cret/"})):
            async with running(url, **options) as connector:
                await connector.send(topic, texts("a"))
        with pytest.raises(Unauthorised):
            async with running(f"nats://{host}", token="wrong"):
                pass


async def test_what_is_not_permitted(tmp_path: Path, topic: str) -> None:
    """A user who may not publish, or not hear answers, is told so at once, not by a time-out."""
    with configured(tmp_path, USERS) as server:
        host = f"127.0.0.1:{server.port}"
        async with running(f"nats://poor:x@{host}") as connector:
            with pytest.raises(Unauthorised, match="permissions violation"):
                await connector.send(topic, texts("a"))
        with pytest.raises(Unauthorised, match="permissions violation"):
            async with running(f"nats://boxed:x@{host}"):
                pass
        async with running(f"nats://boxed:x@{host}?inbox_prefix=MINE") as connector:
            await connector.send(topic, texts("a"))
            assert bodies(await read(connector, topic, 1)) == [b"a"]


async def test_the_least_permissions(tmp_path: Path, topic: str) -> None:
    """What docs/how-to/nats.md lists is enough, once the streams are there."""
    with NatsServer(tmp_path) as server:
        async with running(server.url) as connector:
            await connector.bounds(topic)
            await connector.announce(topic, "n", b"x")
        server.stop()
        server.config = LEAST
        server.start()
        async with running(f"nats://node:x@127.0.0.1:{server.port}") as connector:
            await connector.send(topic, texts("a"))
            await connector.announce(topic, "m", b"y")
            assert sorted(await heard(connector, topic)) == ["m", "n"]
            assert bodies(await read(connector, topic, 1)) == [b"a"]
            assert await connector.peek(topic, 0, 1) is not None
            async with connector.join(topic, group="g", start={}, batch_max=5) as member:
                await member.ack(await anext(member))
            assert (await connector.progress(topic, group="g")).lag == 0


async def test_a_password_changed_meanwhile(nats_server: NatsServer, tmp_path: Path, topic: str) -> None:
    """The server comes back and does not know us any more: Unauthorised, not a riddle."""
    async with running(nats_server.url, timeout_s=0.7) as connector:
        await connector.send(topic, texts("a"))
        nats_server.stop()
        nats_server.config = "authorization { user: a, password: b }"
        nats_server.start()
        with pytest.raises(Unauthorised):
            await connector.bounds(topic)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """ca.pem, and one certificate (cert.pem, key.pem) for 127.0.0.1 that is good for server and client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        lacking("there is no openssl on this machine")
    assert openssl is not None
    names = tmp_path / "names"
    names.write_text("subjectAltName=IP:127.0.0.1")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for arguments in (
        ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2"],
        ["req", *new_key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "cert.pem"],
    ):
        if arguments[0] == "x509":
            arguments += ["-days", "2", "-extfile", str(names)]
        subprocess.run([openssl, *arguments], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


async def test_tls(certificates: Path, tmp_path: Path, topic: str) -> None:
    """The server's certificate is checked against `tls_ca`, and ours is shown."""
    files = {name: certificates / f"{name}.pem" for name in ("ca", "cert", "key")}
    tls = f'tls {{ cert_file: "{files["cert"]}", key_file: "{files["key"]}", ca_file: "{files["ca"]}", verify: true }}'
    with configured(tmp_path / "server", tls) as server:
        host = f"127.0.0.1:{server.port}"
        ours = f"tls_ca={files['ca']}&tls_cert={files['cert']}&tls_key={files['key']}"
        for scheme in ("tls", "nats"):
            async with running(f"{scheme}://{host}?{ours}") as connector:
                await connector.send(topic, texts("a"))
                await asyncio.to_thread(server.restart)
                await connector.send(topic, texts("b"))
        with pytest.raises(Unauthorised, match=r"(?i)certificate"):
            async with running(f"tls://{host}?tls_cert={files['cert']}&tls_key={files['key']}"):
                pass
        with pytest.raises(ConnectorError) as error:
            async with running(f"tls://{host}?tls_ca={files['ca']}"):
                pass
        assert error.value.retryable


@pytest.mark.parametrize("userinfo", ["", "tom:secret@", "token@"])
async def test_tls_is_insisted_on(nats_server: NatsServer, userinfo: str) -> None:
    """With tls://, a server without TLS gets no secret and no message."""
    heard_in_clear = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
        writer.write(await server_reader.readline())
        heard_in_clear.extend(await reader.read(4096))
        writer.close()
        server_writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as listener:
        with pytest.raises(ConnectorError):
            async with running(f"tls://{userinfo}127.0.0.1:{listener.sockets[0].getsockname()[1]}"):
                pass
    assert b"secret" not in heard_in_clear
    assert b"token@" not in heard_in_clear
    with pytest.raises(Unauthorised, match=r"(?i)encrypt|secure"):
        async with running(f"tls://{userinfo}127.0.0.1:{nats_server.port}"):
            pass
