import ctypes
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cascadevl.core import native

ROOT = Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C compiler here")

load = native.load.__wrapped__
"""As a new process would: without the memory of this one."""


@pytest.fixture
def source(tmp_path, monkeypatch, caplog):
    """A C file, and an empty cache of its own."""
    monkeypatch.delenv("CASCADEVL_NATIVE", raising=False)
    monkeypatch.setenv("CASCADEVL_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, logger="cascadevl")
    path = tmp_path / "twice.c"
    path.write_text("int twice(int x) { return 2 * x; }\n")
    return path


def twice(source: Path, number: int) -> int:
    library = load(source)
    assert library
    return library.twice(number)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*"))


@needs_compiler
def test_a_c_file_becomes_functions(source, caplog):
    assert twice(source, 21) == 42
    assert not caplog.records


@needs_compiler
def test_only_the_first_load_needs_a_compiler(source, tmp_path, monkeypatch):
    load(source)
    (library,) = kept(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert twice(source, 21) == 42
    assert kept(tmp_path) == [library]


@needs_compiler
def test_other_sources_flags_and_processors_have_libraries_of_their_own(source, tmp_path, monkeypatch):
    load(source)
    load(source, ("-DANYTHING",))
    monkeypatch.setattr(native, "cpu_flags", frozenset)
    load(source)
    source.write_text("int twice(int x) { return x + x + 2; }\n")
    assert twice(source, 20) == 42
    assert len(kept(tmp_path)) == 4


@needs_compiler
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_library_is_made_again(source, tmp_path, monkeypatch, share):
    load(source)
    (library,) = kept(tmp_path)
    whole = library.read_bytes()
    library.unlink()  # this process still uses the old one
    library.write_bytes(whole[: int(share * len(whole))])
    assert twice(source, 21) == 42
    monkeypatch.setenv("PATH", str(tmp_path))
    assert twice(source, 21) == 42


@needs_compiler
def test_a_whole_library_that_does_not_load_is_passed_over(source, tmp_path):
    load(source)
    (library,) = kept(tmp_path)
    name = library.stem.rpartition("-")[0]
    foreign = b"for another system"
    library.rename(tmp_path / "elsewhere")
    library.with_name(f"{name}-{native.content_hash(foreign)}.so").write_bytes(foreign)
    assert twice(source, 21) == 42
    assert twice(source, 21) == 42
    assert len(kept(tmp_path)) == 2


@needs_compiler
def test_without_a_writable_cache_it_lives_as_long_as_the_process(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADEVL_CACHE", str(source / "below a file"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(native.tempfile, "tempdir", str(temporary))
    assert twice(source, 21) == 42
    assert not list(temporary.iterdir())


@needs_compiler
@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"CASCADEVL_CACHE": "own", "XDG_CACHE_HOME": "common", "HOME": "home"}, "own"),
        ({"XDG_CACHE_HOME": "common", "HOME": "home"}, "common/cascadevl"),
        ({"HOME": "home"}, "home/.cache/cascadevl"),
    ],
)
def test_where_libraries_are_kept(source, tmp_path, monkeypatch, variables, place):
    for name in ("CASCADEVL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    load(source)
    assert [path.parent for path in tmp_path.rglob("twice-*.so")] == [tmp_path / place]


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    for name in ("CASCADEVL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert native.cache_folder() is None


@needs_compiler
def test_processes_may_race(source, tmp_path):
    code = f"""
from pathlib import Path
from cascadevl.core.native import load
print(load(Path({str(source)!r})).twice(21))
"""
    racers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [racer.communicate()[0] for racer in racers] == ["42\n"] * 4
    assert {path.suffix for path in kept(tmp_path)} == {".so"}  # and no folder was left behind


def test_without_a_compiler_there_is_none_and_the_log_says_so_once(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.load(source) is None
    assert native.load(source) is None
    assert [record.getMessage() for record in caplog.records] == [
        "No C compiler (cc, gcc, clang): slower code does the work of twice.c."
    ]


@needs_compiler
def test_a_source_that_does_not_compile_is_none_and_the_log_says_why(source, tmp_path, caplog):
    source.write_text("int twice(int x) { return 2 * y; }\n")
    assert load(source) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "twice.c, which" in record.getMessage() and "undeclared" in record.getMessage()
    assert not kept(tmp_path)


def test_it_can_be_switched_off(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CASCADEVL_NATIVE", "0")
    assert load(source) is None
    assert not caplog.records and not kept(tmp_path)


@needs_compiler
def test_products_and_sums_are_rounded_one_by_one(source):
    source.write_text("double f(double a, double b, double c) { return a * b + c; }\n")
    library = load(source)
    assert library
    function = library.f
    function.argtypes, function.restype = [ctypes.c_double] * 3, ctypes.c_double
    a, b = 1 + 2**-30, -(1 + 2**-29)
    assert function(a, a, b) == a * a + b == 0  # a fused multiply-add gives 2⁻⁶⁰


def test_the_module_loads_without_numpy_and_torch():
    code = "import sys, cascadevl.core.native; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
