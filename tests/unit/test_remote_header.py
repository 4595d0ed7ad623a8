"""Headers of remote GGUFs: what is asked of the server, what is transferred, who gets the token, what errors say."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import small_gguf
from hub_server import HubServer, Served

from checker import header_cache, hub
from checker.gguf import GgufError, read_header
from checker.header import Header

SHA256 = "ab" * 32
TOKEN = "hf_secretsecretsecret"


def header_of(server: HubServer, path: str = "/o/r/resolve/main/model.gguf") -> Header:
    return read_header(f"{server.url}{path}")


def as_hub(server: HubServer, content: bytes, size: int | None = None, **facts: str) -> None:
    """Serve a model as the hub does: it knows the file and leads on to another host, with a signature."""
    server.files["/o/r/resolve/main/model.gguf"] = Served(
        content, size, sha256=SHA256, location=f"{server.other_host}/blob?X-Signature=s3cret", **facts
    )
    server.files["/blob"] = Served(content, size, etag='"blob"')


def test_a_remote_header_is_the_local_one(server: HubServer, model: Path) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes())
    assert header_of(server, "/m.gguf") == read_header(model)


def test_the_hub_leads_on_and_is_asked_once(server: HubServer, model: Path) -> None:
    as_hub(server, model.read_bytes(), size=9 * 10**9)
    assert header_of(server) == read_header(model)
    assert [(asked.method, asked.path.split("?")[0]) for asked in server.asked] == [
        ("HEAD", "/o/r/resolve/main/model.gguf"),
        ("GET", "/o/r/resolve/main/model.gguf"),
        ("GET", "/blob"),
    ]


def test_a_large_vocabulary_in_a_model_of_40_gb(server: HubServer, tmp_path: Path) -> None:
    path = small_gguf.write(tmp_path / "large.gguf", tokens=400_000)[0]
    header = small_gguf.end_of_header(path)
    assert header > 7_000_000
    as_hub(server, path.read_bytes()[:header], size=40 * 10**9)

    assert header_of(server).n_layer == small_gguf.N_LAYER

    assert server.sent < header + 2 * 1024 * 1024 + 65536
    assert len(server.asked) < 12


def test_no_more_than_the_budget_is_transferred(
    server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A header that says that it has as many tokens as fit into 60 MB, all empty.
    header = bytearray(small_gguf.header_bytes(model))
    at = header.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    header[at : at + 8] = (7_000_000).to_bytes(8, "little")
    server.files["/m.gguf"] = Served(bytes(header[: at + 8]), size=9 * 10**9)

    with pytest.raises(GgufError, match="its header is longer than 16,000,000 bytes"):
        header_of(server, "/m.gguf")

    assert server.sent <= hub.BUDGET == 16_000_000


def test_split_parts_share_the_budget_and_are_read_in_order(server: HubServer, tmp_path: Path) -> None:
    whole = read_header(small_gguf.write(tmp_path / "whole.gguf")[0])
    for part in small_gguf.write(tmp_path / "split.gguf", tensors_per_part=5):
        server.files[f"/o/r/resolve/main/{part.name}"] = Served(part.read_bytes(), size=9 * 10**9)

    assert header_of(server, "/o/r/resolve/main/split-00002-of-00003.gguf") == whole
    assert server.sent < 4 * 65536


def test_a_cut_answer_is_gone_on_with(server: HubServer, tmp_path: Path) -> None:
    path = small_gguf.write(tmp_path / "large.gguf", tokens=20_000)[0]
    server.files["/m.gguf"] = Served(path.read_bytes(), cuts=[65536, 100_000, 0, 7])
    assert header_of(server, "/m.gguf") == read_header(path)


# --- the token ---


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    as_hub(server, model.read_bytes(), token=TOKEN)

    header_of(server)

    assert {(asked.host, asked.authorization) for asked in server.asked} == {
        ("127.0.0.1", f"Bearer {TOKEN}"),
        ("localhost", None),
    }


def test_another_server_is_not_sent_the_token(server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    server.files["/m.gguf"] = Served(model.read_bytes())
    header_of(server, "/m.gguf")
    assert {asked.authorization for asked in server.asked} == {None}


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("HF_TOKEN_PATH", "{home}/mine", "mine"),
        ("HF_HOME", "{home}/hf", "hf/token"),
        ("XDG_CACHE_HOME", "{home}/cache", "cache/huggingface/token"),
    ],
)
def test_the_token_is_found_in_its_file(
    server: HubServer,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    value: str,
    place: str,
) -> None:
    monkeypatch.setenv(variable, value.format(home=tmp_path))
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text(f"{TOKEN}\n", encoding="utf-8")
    as_hub(server, model.read_bytes(), token=TOKEN)
    assert header_of(server).n_layer == small_gguf.N_LAYER


def test_a_netrc_does_not_take_the_place_of_the_token(
    server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password netrcsecret\n", encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    as_hub(server, model.read_bytes(), token=TOKEN)
    header_of(server)


def test_a_token_that_is_none_is_refused_without_being_shown(
    server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "two words\nof secrets")
    as_hub(server, model.read_bytes())
    with pytest.raises(GgufError, match="the token in HF_TOKEN or its file is no token") as refused:
        header_of(server)
    assert "secrets" not in str(refused.value)


# --- what servers answer ---


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_the_variable(server: HubServer, status: int) -> None:
    server.files["/o/r/resolve/main/model.gguf"] = Served(b"", status=status)
    with pytest.raises(GgufError, match=f"answers {status} .*gated or private.*set HF_TOKEN in the environment"):
        header_of(server)


def test_a_token_without_access_is_said(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.files["/o/r/resolve/main/model.gguf"] = Served(b"", token="another")
    with pytest.raises(GgufError, match=r"although the token of HF_TOKEN .* was sent") as refused:
        header_of(server)
    assert TOKEN not in str(refused.value)


def test_another_servers_login_does_not_ask_for_the_hubs_token(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    server.files["/m.gguf"] = Served(b"", status=403)
    with pytest.raises(GgufError, match=r"403 .*the server asks for a login") as refused:
        header_of(server, "/m.gguf")
    assert "HF_TOKEN" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(server: HubServer) -> None:
    with pytest.raises(GgufError) as refused:
        header_of(server)
    assert str(refused.value).startswith(f"{server.url}/o/r/resolve/main/model.gguf answers 404 Not Found")


def test_a_server_without_ranges_is_left_at_once(server: HubServer, model: Path) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes() + bytes(50_000_000), ranges=False)
    with pytest.raises(GgufError, match=r"no byte ranges \(it answers 200, expected 206\).* of 50,[0-9,]+ bytes"):
        header_of(server, "/m.gguf")
    # What the system's buffers hold may have been written; the file was not.
    assert server.sent < 16_000_000


def test_a_login_page_is_shown(server: HubServer) -> None:
    page = b"<!DOCTYPE html><html><head><title>Sign in to continue</title></head></html>"
    server.files["/m.gguf"] = Served(page, content_type="text/html", ranges=False)
    with pytest.raises(GgufError, match="is no GGUF: it is text/html and begins with '<!DOCTYPE html><html>"):
        header_of(server, "/m.gguf")


def test_a_login_page_in_ranges_is_shown(server: HubServer) -> None:
    server.files["/m.gguf"] = Served(b"<html>Sign in</html>", content_type="text/html")
    with pytest.raises(GgufError, match="it is no GGUF: it begins with '<html>Sign in</html>', expected 'GGUF'"):
        header_of(server, "/m.gguf")


def test_a_truncated_file_is_said(server: HubServer, model: Path) -> None:
    server.files["/m.gguf"] = Served(small_gguf.header_bytes(model)[:700])
    with pytest.raises(GgufError, match=r"goes on to byte .* but the file ends at 700"):
        header_of(server, "/m.gguf")


def test_an_empty_file_is_said(server: HubServer) -> None:
    server.files["/m.gguf"] = Served(b"")
    with pytest.raises(GgufError, match="it is empty, expected a GGUF"):
        header_of(server, "/m.gguf")


@pytest.mark.parametrize("told", ["bytes 5-9/100", "nonsense", ""])
def test_another_range_than_the_one_asked_for_is_refused(server: HubServer, model: Path, told: str) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes(), content_range=told or "bytes */7")
    with pytest.raises(GgufError, match="expected that range"):
        header_of(server, "/m.gguf")


def test_a_file_that_changes_while_it_is_read_is_refused(server: HubServer, tmp_path: Path) -> None:
    path = small_gguf.write(tmp_path / "large.gguf", tokens=20_000)[0]
    server.files["/m.gguf"] = Served(path.read_bytes(), grows=1)
    with pytest.raises(GgufError, match="changed while it was read"):
        header_of(server, "/m.gguf")


def test_a_circle_of_redirects_ends(server: HubServer) -> None:
    server.files["/m.gguf"] = Served(b"", location="/m.gguf")
    with pytest.raises(GgufError, match="leads on and on"):
        header_of(server, "/m.gguf")
    assert len(server.asked) < 15


def test_a_redirect_to_another_scheme_is_refused(server: HubServer) -> None:
    for location in ("file:///etc/passwd", "http://[::1/m.gguf", "http://h:port/m"):
        server.files["/m.gguf"] = Served(b"", location=location)
        with pytest.raises(GgufError, match=r"leads on to .* expected a web address|cannot be reached: "):
            header_of(server, "/m.gguf")


def test_a_relative_redirect_is_followed(server: HubServer, model: Path) -> None:
    server.files["/a/m.gguf"] = Served(b"", location="b/m.gguf")
    server.files["/a/b/m.gguf"] = Served(b"", location="../c.gguf?x=1:2")
    server.files["/a/c.gguf"] = Served(model.read_bytes())
    assert header_of(server, "/a/m.gguf") == read_header(model)


def test_a_redirect_into_the_void_is_an_error(server: HubServer) -> None:
    server.files["/m.gguf"] = Served(b"", location="/absent.gguf")
    with pytest.raises(GgufError, match="answers 404"):
        header_of(server, "/m.gguf")


def test_errors_show_no_signature_and_no_password(server: HubServer) -> None:
    with pytest.raises(GgufError) as refused:
        read_header(f"http://me:passw0rd@127.0.0.1:{server.port}/m.gguf?X-Signature=s3cret")
    assert "s3cret" not in str(refused.value)
    assert "passw0rd" not in str(refused.value)


def test_a_server_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, server: HubServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/m.gguf?X-Signature=s3cret"
    with pytest.raises(GgufError, match=r"/m\.gguf cannot be reached: .*Connection refused") as refused:
        read_header(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://", "https:///m.gguf", "http://[::1/m.gguf", "http://a b/m.gguf", "http://h:port/m"]
)
def test_what_is_no_address_is_an_error(server: HubServer, url: str) -> None:
    with pytest.raises(GgufError) as refused:
        read_header(url)
    assert "passw0rd" not in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("value", ["hub", "http://h:port", "ftp://hub", "https://me:passw0rd@[::1"])
def test_an_endpoint_that_is_none_is_an_error(server: HubServer, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(GgufError, match=r"HF_ENDPOINT is .* expected an address such as https://") as said:
        header_of(server, "/m.gguf")
    assert "passw0rd" not in str(said.value)


def test_a_server_that_has_a_bad_moment_is_asked_again(server: HubServer, model: Path) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes(), status=503)
    with pytest.raises(GgufError, match="503"):
        header_of(server, "/m.gguf")
    assert server.methods().count("GET") == 3


# --- the cache ---


def test_a_second_reading_asks_with_a_head_only(server: HubServer, model: Path) -> None:
    as_hub(server, model.read_bytes())
    first = header_of(server)
    server.asked.clear()

    assert header_of(server) == first
    assert server.methods() == ["HEAD"]


def test_the_etag_of_a_plain_server_will_do(server: HubServer, model: Path) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes(), etag='"67-1"')
    first = header_of(server, "/m.gguf")
    server.asked.clear()
    assert header_of(server, "/m.gguf") == first
    assert server.methods() == ["HEAD"]


def test_a_file_that_changed_is_read_again(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes(), etag='"67-1"')
    header_of(server, "/m.gguf")
    other = small_gguf.write(tmp_path / "other.gguf", tokens=9)[0]
    server.files["/m.gguf"] = Served(other.read_bytes(), etag='"68-2"')
    server.asked.clear()
    header_of(server, "/m.gguf")
    assert "GET" in server.methods()


def test_a_known_sha256_needs_no_network(server: HubServer, model: Path) -> None:
    as_hub(server, model.read_bytes())
    header_of(server)
    server.asked.clear()
    assert hub.read_parts([f"{server.url}/o/r/resolve/main/model.gguf"], [SHA256])
    assert server.asked == []


@pytest.mark.parametrize("head_status", [405, 501, 403])
def test_without_head_and_without_etag_the_header_is_read_every_time(
    server: HubServer, model: Path, head_status: int
) -> None:
    server.files["/m.gguf"] = Served(model.read_bytes(), head_status=head_status)
    for _ in range(2):
        assert header_of(server, "/m.gguf").n_layer == small_gguf.N_LAYER
    assert server.methods() == ["HEAD", "GET"] * 2


@pytest.mark.parametrize("rubbish", ["", "[]", "{}", '{"schema": "llama-tiers/gguf/0"}', "\x00"])
def test_a_damaged_cache_is_read_anew(server: HubServer, model: Path, rubbish: str) -> None:
    as_hub(server, model.read_bytes())
    first = header_of(server)
    for path in header_cache.folder().iterdir():
        path.write_text(rubbish, encoding="utf-8")
    assert header_of(server) == first


def test_a_cache_that_cannot_be_written_is_no_error(
    server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    as_hub(server, model.read_bytes())
    assert header_of(server).n_layer == small_gguf.N_LAYER


# --- what the hub says of a file ---


def test_facts_of_a_file_on_the_hub(server: HubServer) -> None:
    as_hub(server, b"", size=8_988_110_240)
    with hub.Web() as web:
        facts = hub.file_facts(web, hub.resolve_url("o/r", "main", "model.gguf"))
    assert facts == hub.FileFacts(f"127.0.0.1:{server.port}", 8_988_110_240, SHA256, SHA256)
    assert server.methods() == ["HEAD"]  # and not on to the other host


def test_a_renamed_repository_is_followed(server: HubServer) -> None:
    as_hub(server, b"", size=5)
    server.files["/old/r/resolve/main/model.gguf"] = Served(b"", location="/o/r/resolve/main/model.gguf")
    with hub.Web() as web:
        facts = hub.file_facts(web, hub.resolve_url("old/r", "main", "model.gguf"))
    assert facts.sha256 == SHA256


def test_a_plain_servers_etag_is_no_sha256(server: HubServer) -> None:
    server.files["/m.gguf"] = Served(b"12345", etag=f'"{SHA256}"')
    with hub.Web() as web:
        assert hub.file_facts(web, f"{server.url}/m.gguf") == hub.FileFacts(f"127.0.0.1:{server.port}", 5, None, SHA256)


def test_another_server_that_speaks_as_the_hub_is_not_believed(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    as_hub(server, b"", size=5)
    with hub.Web() as web:
        facts = hub.file_facts(web, f"{server.url}/o/r/resolve/main/model.gguf")
    assert facts.sha256 is None
    assert facts.content == f"etag {SHA256} of 5 bytes at 127.0.0.1:{server.port}"


def test_names_in_an_address_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub.resolve_url("o/r", "refs/pr/1", "Q4 #1/m+n.gguf") == (
        "https://huggingface.co/o/r/resolve/refs%2Fpr%2F1/Q4%20%231/m%2Bn.gguf"
    )
