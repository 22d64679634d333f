"""The installer of Detectron2: exact repairs, a verified download, and no harm to an existing one.

No test uses the network: pip is pointed at a folder with a small archive made here.
"""

import hashlib
import importlib.machinery
import importlib.util
import io
import tarfile

import pytest


@pytest.fixture(scope="module")
def installer(load_tool):
    return load_tool("install_detectron2")


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def write_source(installer, root):
    """A tree that has what every repair looks for, and nothing else."""
    for repair in installer.REPAIRS:
        path = root / repair.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{repair.old}\n" * repair.count)
    for folder in installer.PROJECTS:
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").touch()
    (root / "LICENSE").write_text("the licence")
    return root


class TestRepairs:
    def test_replaces_every_occurrence(self, installer, tmp_path):
        (tmp_path / "a.py").write_text("x = np.int(1)\ny = np.int(2)\nz = np.int64(3)\n")
        installer.apply_repairs(tmp_path, [installer.Repair("a.py", "np.int(", "int(", "why", 2)])
        assert (tmp_path / "a.py").read_text() == "x = int(1)\ny = int(2)\nz = np.int64(3)\n"

    @pytest.mark.parametrize("text", ["", "old old"])
    def test_other_number_of_matches_stops(self, installer, tmp_path, text):
        (tmp_path / "a.py").write_text(text)
        with pytest.raises(installer.InstallError, match=r"a\.py \(the reason\).*'old' 1 time"):
            installer.apply_repairs(
                tmp_path, [installer.Repair("a.py", "old", "new", "the reason")]
            )
        assert (tmp_path / "a.py").read_text() == text

    def test_missing_file_stops(self, installer, tmp_path):
        with pytest.raises(installer.InstallError, match=r"a\.py \(the reason\).*no such file"):
            installer.apply_repairs(
                tmp_path, [installer.Repair("a.py", "old", "new", "the reason")]
            )

    def test_repaired_source_is_refused(self, installer, tmp_path):
        root = write_source(installer, tmp_path)
        installer.apply_repairs(root, installer.REPAIRS)
        with pytest.raises(installer.InstallError, match="found it 0 time"):
            installer.apply_repairs(root, installer.REPAIRS)


class TestPrepare:
    def test_tree(self, installer, tmp_path):
        source, tree = write_source(installer, tmp_path / "source"), tmp_path / "tree"
        tree.mkdir()
        installer.prepare(source, tree)
        assert (tree / "LICENSE").read_text() == "the licence"
        assert (tree / "detectron2/projects/point_rend/__init__.py").is_file()
        assert "pkg_resources" not in (tree / "detectron2/model_zoo/model_zoo.py").read_text()
        assert "Pillow 10" in (tree / "detectron2" / installer.REPAIR_LIST).read_text()
        assert not (tree / "setup.py").exists()

    def test_changed_source_is_refused(self, installer, tmp_path):
        source, tree = write_source(installer, tmp_path / "source"), tmp_path / "tree"
        tree.mkdir()
        (source / "detectron2/structures/masks.py").write_text("rewritten upstream")
        with pytest.raises(installer.InstallError, match=r"structures/masks\.py.*np\.bool"):
            installer.prepare(source, tree)


class TestUnpack:
    def test_returns_the_top_folder(self, installer, tmp_path):
        archive = write_archive(tmp_path / "a.tar.gz", {"top/a.py": "1", "top/b/c.py": "2"})
        top = installer.unpack(archive, tmp_path / "out")
        assert top == tmp_path / "out" / "top"
        assert (top / "b" / "c.py").read_text() == "2"

    @pytest.mark.parametrize("name", ["../evil.py", "top/../../evil.py", "/tmp/evil.py"])
    def test_refuses_to_write_elsewhere(self, installer, tmp_path, name):
        archive = write_archive(tmp_path / "a.tar.gz", {name: "1"})
        with pytest.raises(installer.InstallError, match=r"unsafe file name '.*evil\.py'"):
            installer.unpack(archive, tmp_path / "out")
        assert not list(tmp_path.rglob("evil.py"))


class TestDownload:
    """`download` with the real pip, which finds the archive in a local folder."""

    @pytest.fixture
    def archive(self, tmp_path, monkeypatch):
        shop = tmp_path / "shop"
        shop.mkdir()
        setup = (
            f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"
            "from setuptools import setup\n"
            "setup(name='pb1-detectron2', version='0.6')\n"
        )
        path = write_archive(
            shop / "pb1-detectron2-0.6.tar.gz",
            {
                "pb1-detectron2-0.6/setup.py": setup,
                "pb1-detectron2-0.6/PKG-INFO": "Name: pb1-detectron2\nVersion: 0.6\n",
            },
        )
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
        return path

    def test_expected_content(self, installer, archive, tmp_path):
        (tmp_path / "downloads").mkdir()
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        fetched = installer.download(tmp_path / "downloads", sha256=sha256)
        assert fetched.read_bytes() == archive.read_bytes()
        assert (tmp_path / "executed").exists()

    def test_other_content_is_refused_before_it_runs(self, installer, archive, tmp_path):
        (tmp_path / "downloads").mkdir()
        with pytest.raises(installer.InstallError, match=f"(?s){installer.SOURCE}.*HASHES"):
            installer.download(tmp_path / "downloads")
        assert not (tmp_path / "executed").exists()


class TestExistingInstallation:
    @pytest.fixture
    def package(self, installer, tmp_path, monkeypatch):
        """A stand-in for the Detectron2 that this interpreter would import."""
        package = tmp_path / "detectron2"
        package.mkdir()
        spec = importlib.machinery.ModuleSpec("detectron2", None, origin=f"{package}/__init__.py")
        monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(installer.metadata, "version", lambda name: "0.6")
        return package

    @pytest.fixture
    def no_install(self, installer, monkeypatch):
        monkeypatch.setattr(installer, "install", lambda: pytest.fail("it was replaced"))

    @pytest.mark.usefixtures("no_install")
    def test_is_left_alone(self, installer, package, capsys):
        assert installer.main() == 0
        assert f"already installed in {package}; it is left as it is" in capsys.readouterr().out

    @pytest.mark.usefixtures("no_install")
    def test_own_product_is_left_alone(self, installer, package):
        (package / installer.REPAIR_LIST).write_text(installer.describe(installer.REPAIRS))
        assert installer.main() == 0

    def test_own_outdated_product_is_replaced(self, installer, package, monkeypatch):
        (package / installer.REPAIR_LIST).write_text("other repairs")
        calls = []
        monkeypatch.setattr(installer, "install", lambda: calls.append("install"))
        assert installer.main() == 0
        assert calls == ["install"]

    @pytest.mark.usefixtures("no_install", "package")
    def test_older_version_is_refused(self, installer, monkeypatch, capsys):
        monkeypatch.setattr(installer.metadata, "version", lambda name: "0.5")
        assert installer.main() == 1
        assert "detectron2 0.5" in capsys.readouterr().err


def test_pip_that_refuses_the_source_is_named(installer, monkeypatch):
    monkeypatch.setattr(installer.metadata, "version", lambda name: "26.3")
    with pytest.raises(installer.InstallError, match=r"pip 26\.3 refuses .* 'pip<26\.3'` first"):
        installer.install()
