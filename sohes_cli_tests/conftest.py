"""Real photographs, the labels of a run that nothing disturbed, and ways to run the command as users do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # several processes test at once, and threads of one would be in the way of the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Labels = dict[str, bytes]

H, W = 104, 136
CROPS = {  # name -> photograph of scikit-image, top, left
    "a-cup.png": ("coffee", 60, 180),
    "b-face.png": ("astronaut", 40, 150),
    "c-eyes.png": ("chelsea", 60, 100),
    "d-spoon.jpg": ("coffee", 220, 320),
    "sub/a-cup.png": ("coffee", 150, 250),
    "sub/flügel.png": ("astronaut", 220, 20),
    "sub/nose.png": ("chelsea", 130, 200),
    "z-helmet.png": ("astronaut", 330, 330),
}


TWO_PROCESSES = (
    *("--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--main_process_port", 0),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)
LAUNCH_PATIENCE_S = 240


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight small crops of photographs with a sub-folder; not to be changed."""
    from skimage import data

    folder = tmp_path_factory.mktemp("input") / "photos"
    for name, (source, top, left) in CROPS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(getattr(data, source)()[top : top + H, left : left + W]).save(path)
    return folder


@pytest.fixture(scope="session")
def labels_of() -> Callable[[Path], Labels]:
    """Every file below a folder by its relative name, hidden ones included."""
    return lambda folder: {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="session")
def reference_folder(photos: Path) -> Path:
    """The label folder of `photos` from one undisturbed process."""
    out = photos.parent / "reference"
    command = [sys.executable, "-m", "sohes_cli", "explore", str(photos), "--out", str(out), "--workers", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return out


@pytest.fixture(scope="session")
def reference(reference_folder: Path, labels_of: Callable[[Path], Labels]) -> Labels:
    """Its files, which other runs must equal if they write next to the photographs as well."""
    return labels_of(reference_folder)


@pytest.fixture
def out(photos: Path, request: pytest.FixtureRequest) -> Path:
    """A label folder of this test's own, as far from the photographs as the reference, because the manifest holds the
    way to them.
    """
    return photos.parent / f"labels-{abs(hash(request.node.nodeid))}"


@pytest.fixture
def sohes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Run the command line in this process: `sohes("explore", folder, ...)`."""
    from sohes_cli.cli import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["sohes", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        return Result(int(exit_.value.code or 0), *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -m MODULE ARGUMENTS` as the leader of a process group, which is killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: object, module: str = "sohes_cli", **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        running.append(process)
        return process

    yield run
    for process in running:
        with contextlib.suppress(ProcessLookupError):  # workers may have outlived their leader
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, in this process and in those of a test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def launch(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> Callable[..., Result]:
    """Run `sohes ...` in two processes on the CPU through `accelerate launch`.

    There `--cpu --num_processes 2` starts a single process unless MPI is there to start more; `--multi_gpu`, in spite
    of its name, starts as many as it is told through torchrun's agent.
    """

    def run(*arguments: object) -> Result:
        command = (*TWO_PROCESSES, "-m", "sohes_cli", *arguments)
        process = start(*command, module="accelerate.commands.launch", HF_HOME=str(tmp_path / "no configuration"))
        printed, errors = process.communicate(timeout=LAUNCH_PATIENCE_S)
        return Result(process.returncode, printed, errors)

    return run


SLOWEST_FIRST = ("test_onnx_export.py", "test_readme.py", "test_correction.py", "test_train_session.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no process is left with one of them at the end."""
    rank = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_configure() -> None:
    """Let no test reach for weights in the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
