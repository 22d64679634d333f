"""The installer of Detectron2: exact repairs, a verified download, and no harm to an existing one.

No test uses the network: pip is pointed at a folder with a small wheel made here.
"""

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile

import pytest

import proscale_setup


@pytest.fixture(scope="module")
def installer():
    return proscale_setup


def write_source(installer, folder, *, without=""):
    """A wheel that has what every repair looks for, and what is to be left out."""
    files = {
        "detectron2/__init__.py": "",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "compiled",
        "detectron2/projects/point_rend/__init__.py": "",
        "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2",
        "tools/train_net.py": "",
        "sal_detectron2-0.7.2.dist-info/LICENSE": "the licence",
        "sal_detectron2-0.7.2.dist-info/METADATA": "Name: sal-detectron2\nVersion: 0.7.2\n",
        "sal_detectron2-0.7.2.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: cp310-none-any\n",
        "sal_detectron2-0.7.2.dist-info/RECORD": "",
    }
    for repair in installer.REPAIRS:
        if repair.file != without:
            files[repair.file] = files.get(repair.file, "") + f"{repair.old}\n"
    folder.mkdir(exist_ok=True)
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


class TestRepairs:
    def test_replaces_what_is_there_once(self, installer):
        files = {"a.py": b"x = np.int(1)\nz = np.int64(3)\n", "b.py": b"np.int("}
        repaired = installer.apply_repairs(
            files, [installer.Repair("a.py", "np.int(", "int(", "why")]
        )
        assert repaired == {"a.py": b"x = int(1)\nz = np.int64(3)\n", "b.py": b"np.int("}

    @pytest.mark.parametrize("text", ["", "old old"])
    def test_other_number_of_matches_stops(self, installer, text):
        repair = installer.Repair("a.py", "old", "new", "the reason")
        with pytest.raises(installer.InstallError, match=r"a\.py \(the reason\).*'old' once"):
            installer.apply_repairs({"a.py": text.encode()}, [repair])

    def test_missing_file_stops(self, installer):
        with pytest.raises(installer.InstallError, match=r"a\.py \(the reason\).*no such file"):
            installer.apply_repairs({}, [installer.Repair("a.py", "old", "new", "the reason")])

    def test_repaired_source_is_refused(self, installer, tmp_path):
        files, _ = installer.read_package(write_source(installer, tmp_path))
        repaired = installer.apply_repairs(files, installer.REPAIRS)
        with pytest.raises(installer.InstallError, match="found it 0 time"):
            installer.apply_repairs(repaired, installer.REPAIRS)


class TestWheel:
    def test_content(self, installer, tmp_path):
        with zipfile.ZipFile(
            installer.write_wheel(write_source(installer, tmp_path), tmp_path)
        ) as archive:
            content = {name: archive.read(name).decode() for name in archive.namelist()}
        assert content["detectron2-0.7.2.dist-info/LICENSE"] == "the licence"
        assert "detectron2/projects/point_rend/__init__.py" in content
        assert "detectron2/model_zoo/configs/Base.yaml" in content
        assert "pkg_resources" not in content["detectron2/model_zoo/model_zoo.py"]
        assert "NumPy 2" in content[f"detectron2/{installer.REPAIR_LIST}"]
        assert {name.partition("/")[0] for name in content} == {
            "detectron2",
            "detectron2-0.7.2.dist-info",
        }
        assert not any(name.endswith(".so") for name in content)

    def test_pip_installs_and_verifies_it(self, installer, tmp_path):
        wheel = installer.write_wheel(write_source(installer, tmp_path), tmp_path)
        target = tmp_path / "target"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
        (found,) = importlib.metadata.distributions(name="detectron2", path=[str(target)])
        assert found.version == "0.7.2"
        for file in found.files:
            if file.hash and file.name != "direct_url.json":
                assert installer._digest(file.read_binary()) == file.hash.value, file

    def test_changed_source_is_refused(self, installer, tmp_path):
        source = write_source(installer, tmp_path, without="detectron2/layers/mask_ops.py")
        with pytest.raises(installer.InstallError, match=r"layers/mask_ops\.py.*NumPy 2"):
            installer.write_wheel(source, tmp_path)

    def test_files_that_would_land_elsewhere_are_left_out(self, installer, tmp_path):
        source = write_source(installer, tmp_path)
        with zipfile.ZipFile(source, "a") as archive:
            for name in ("../evil.py", "detectron2/../../evil.py", "/tmp/evil.py"):
                archive.writestr(name, "")
        package, _ = installer.read_package(source)
        assert not [name for name in package if "evil" in name]

    def test_another_package_is_refused(self, installer, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
            archive.writestr("other/__init__.py", "")
        with pytest.raises(installer.InstallError, match=r"a\.whl has no package detectron2"):
            installer.read_package(tmp_path / "a.whl")


class TestDownload:
    """`download` with the real pip, which finds the wheel in a local folder."""

    @pytest.fixture
    def wheel(self, installer, tmp_path, monkeypatch):
        path = write_source(installer, tmp_path / "shop")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
        return path

    def test_expected_content(self, installer, wheel, tmp_path):
        (tmp_path / "downloads").mkdir()
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        fetched = installer.download(tmp_path / "downloads", sha256=sha256)
        assert fetched.read_bytes() == wheel.read_bytes()

    @pytest.mark.usefixtures("wheel")
    def test_other_content_is_refused(self, installer, tmp_path):
        (tmp_path / "downloads").mkdir()
        with pytest.raises(installer.InstallError, match=f"(?s){installer.SOURCE}.*HASHES"):
            installer.download(tmp_path / "downloads")
        assert not list((tmp_path / "downloads").glob("*.whl"))


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
