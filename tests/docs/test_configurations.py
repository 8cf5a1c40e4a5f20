"""The configurations of other programs in the docs, read by these programs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from testing.certificate import make_certificate
from tests.docs.documented import ROOT

ALERTS = ROOT / "helm" / "alerts.yaml"
QUICK_START = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """Return the block of this language in the quick start."""
    [text] = re.findall(rf"```{language}\n(.*?)```", QUICK_START, re.DOTALL)
    return str(text)


def checked_by(program: str, *arguments: str | Path) -> None:
    """Assert that the program accepts its input."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_caddy_accepts_its_file(tmp_path: Path) -> None:
    """As it is in the quick start."""
    (tmp_path / "Caddyfile").write_text(block("caddy"), encoding="utf-8")
    checked_by("caddy", "validate", "--adapter", "caddyfile", "--config", tmp_path / "Caddyfile")


def test_nginx_accepts_its_file(tmp_path: Path) -> None:
    """With a certificate that exists."""
    made = make_certificate(tmp_path)
    server = re.sub(r"/etc/letsencrypt/\S+/fullchain.pem", str(made.certificate), block("nginx"))
    server = re.sub(r"/etc/letsencrypt/\S+/privkey.pem", str(made.key), server)
    folders = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {folders} {server} }}"
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
    checked_by("nginx", "-t", "-c", tmp_path / "nginx.conf", "-p", tmp_path)


def test_prometheus_accepts_the_rules_and_each_alert_fires(tmp_path: Path) -> None:
    """Beside the rules are their tests."""
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts.test.yaml"), tmp_path)
    checked_by("promtool", "check", "rules", tmp_path / "alerts.yaml")
    checked_by("promtool", "test", "rules", tmp_path / "alerts.test.yaml")


def test_each_alert_has_a_section_in_the_page() -> None:
    """In the order of the rules, with what it means and what to do; tests/test_metrics.py has the metrics."""
    [group] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    section = r"^### (\w+)\n\n- \*\*Fires:\*\* .+\n- \*\*Means:\*\* .+\n- \*\*Do:\*\* .+\n\n"
    assert re.findall(section, page, re.MULTILINE) == [rule["alert"] for rule in group["rules"]]
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
