"""The NATS configurations that production starts from."""

import re
import subprocess
from pathlib import Path

import pytest

from breakwater_gateway.runtime.embedded import server_binary

CONFIGS = sorted((Path(__file__).parents[2] / "ops" / "nats").glob("*.conf"))


def test_there_is_one_for_a_single_node_and_one_for_each_of_three() -> None:
    names = [path.name for path in CONFIGS]
    assert names == ["cluster-1.conf", "cluster-2.conf", "cluster-3.conf", "single.conf"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_server_accepts_it(path: Path, tmp_path: Path) -> None:
    # The server makes the store's directory even to check a file.
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace('"/data/jetstream"', f'"{tmp_path / "js"}"'))
    run = subprocess.run(
        [server_binary(), "-t", "-c", copy], capture_output=True, text=True, check=False, timeout=30
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_has_the_limits_that_the_gateway_counts_on(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^max_payload: 8MB$", text, re.MULTILINE)
    assert "feature_flags { js_ack_fc_v2: false }" in text
    assert ("sync_interval: always\n" in text) == (path.name == "single.conf")


def test_the_nodes_of_the_cluster_differ_only_in_their_names() -> None:
    def common(path: Path) -> str:
        return re.sub(
            r"nats-route://nats-[123]:6222|(?:Node |breakwater-|cluster-)[123]",
            "",
            path.read_text(),
        )

    cluster = [path for path in CONFIGS if path.name.startswith("cluster")]
    assert len({common(path) for path in cluster}) == 1
    for number, path in enumerate(cluster, 1):
        routes = re.findall(r"nats-route://nats-([123]):6222", path.read_text())
        assert sorted([*map(int, routes), number]) == [1, 2, 3]
