"""The files of the chat page: which there are, what they name, under which headers they come."""

import http.client
import re
from pathlib import Path

import cascadevl
from cascadevl.serving.page import FILES
from tests.serving.conftest import PATIENCE_S

UI = Path(cascadevl.__file__).parent / "serving" / "ui"


def get(url, path, method="GET", **headers):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_the_table_has_every_file_of_the_page_and_no_other():
    assert sorted(name for name, _ in FILES.values()) == sorted(path.name for path in UI.iterdir())


def test_the_page_names_no_file_that_is_not_served_and_nothing_elsewhere():
    for path in UI.glob("*.*"):
        if path.suffix == ".png":
            continue
        text = path.read_text()
        for name in re.findall(r'(?:src|href|data-picture)="(ui/[^"#]+)"|from "\./([^"]+)"', text):
            assert f"/{name[0] or 'ui/' + name[1]}" in FILES
        elsewhere = re.findall(r"""["'(=]\s*(?:https?:)?//[^"')\s]+""", text)
        assert [each[1:] for each in elsewhere] in ([], ["http://www.w3.org/2000/svg"]), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path.name


def test_files_come_with_a_strict_policy_and_are_sent_again_only_where_they_changed(server):
    for path, (name, kind) in FILES.items():
        response, body = get(server.url, path)
        assert response.status == 200
        assert body == (UI / name).read_bytes()
        assert response.getheader("Content-Type", "").startswith(kind)
        assert response.getheader("X-Content-Type-Options") == "nosniff"
        assert response.getheader("Cache-Control") == "no-cache"
        policy = response.getheader("Content-Security-Policy", "")
        assert "default-src 'none'" in policy and "unsafe" not in policy and "trusted-types 'none'" in policy
        etag = response.getheader("ETag", "")
        again, nothing = get(server.url, path, **{"If-None-Match": f'"other", W/{etag}'})
        assert (again.status, nothing) == (304, b"")
        assert again.getheader("Content-Security-Policy") == policy
        assert get(server.url, path, **{"If-None-Match": '"other"'})[0].status == 200
        assert get(server.url, path, "HEAD")[1] == b""


def test_no_other_file_can_be_asked_for(server):
    for path in ("/ui/", "/ui/index.html", "/ui/page.py", "/ui/../page.py", "/ui/%2e%2e/page.py", "/ui//app.js"):
        assert get(server.url, path)[0].status == 404


def test_a_foreign_host_name_gets_no_page_either(server):
    assert get(server.url, "/", Host="evil.example")[0].status == 400
