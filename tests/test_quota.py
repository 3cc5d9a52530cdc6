"""How many cores a container has: which it may run on, and for how long."""

import os
import sys

import pytest

from loader.quota import cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has groups")


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        pytest.param("0::/\n", {}, 64, id="no quota anywhere"),
        pytest.param("0::/\n", {"cpu.max": "max 100000"}, 64, id="v2: none"),
        pytest.param("0::/\n", {"cpu.max": "200000 100000"}, 2, id="v2"),
        pytest.param(
            "0::/\n", {"cpu.max": "150000 100000"}, 2, id="v2: one and a half"
        ),
        pytest.param("0::/\n", {"cpu.max": "50000 100000"}, 1, id="v2: half of one"),
        pytest.param("0::/\n", {"cpu.max": "1 100000"}, 1, id="v2: hardly any"),
        pytest.param(
            "0::/\n", {"cpu.max": "9900000 100000"}, 64, id="v2: more than all"
        ),
        pytest.param(
            "0::/pods/1\n",
            {"pods/1/cpu.max": "800000 100000", "pods/cpu.max": "300000 100000"},
            3,
            id="v2: the parent's is tighter",
        ),
        pytest.param(
            "0::/pods/host/path\n",
            {"cpu.max": "400000 100000"},
            4,
            id="v2: the path is the host's, the mount is the container's",
        ),
        pytest.param(
            "4:memory:/x\n1:cpu,cpuacct:/docker/1\n",
            {
                "cpu/docker/1/cpu.cfs_quota_us": "250000",
                "cpu/docker/1/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/x/cpu.cfs_quota_us": "1",  # not our group for time
                "cpu/x/cpu.cfs_period_us": "100000",
            },
            3,
            id="v1",
        ),
        pytest.param(
            "\n7\n8:cpu\n0::/a\x85b\n",
            {"a\x85b/cpu.max": "200000 100000"},
            2,
            id="lines that say nothing, and a name with a newline of Unicode's",
        ),
        pytest.param(
            "0::/\udcff\n", {"cpu.max": "200000 100000"}, 2, id="a name of any bytes"
        ),
        pytest.param("0::/\n", {"cpu.max": "200000 0"}, 64, id="no period"),
        pytest.param("0::/\n", {"cpu.max": ""}, 64, id="nothing in it"),
        pytest.param("0::/\n", {"cpu.max": "much 100000"}, 64, id="no number"),
    ],
)
def test_the_tightest_quota_counts(
    tmp_path, monkeypatch, cgroup, files, expected
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup, errors="surrogateescape")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cores(tmp_path) == expected


def test_a_machine_without_groups(tmp_path) -> None:
    assert cores(tmp_path) == len(os.sched_getaffinity(0))


def test_it_is_read_here() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
