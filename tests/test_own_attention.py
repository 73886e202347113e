"""An attention function of somebody else's: one file in a user directory of their own."""

import re
import subprocess
import sys

import pytest

from fairseq_csp import build_attention
from tests.helpers.commands import (
    ENVIRONMENT,
    ROOT,
    SMALL,
    call,
    logged,
    succeed,
    train,
    training_command,
)

README = (ROOT / "README.md").read_text()
MAP = """
    def attention_map(self, values, lengths):
        unit = torch.eye(values.size(2))
        mean = torch.full_like(unit, 1 / values.size(2))
        return AttentionMaps("channel", torch.lerp(unit, mean, self.share[:, :, None]))
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The user directory of the README, with a map added to its function."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = (block for block in blocks if "@register_attention" in block)
    (init,) = (block for block in blocks if block.startswith("import fairseq_csp\n"))
    # another name, since the README's own file may lie in place
    code, init = code.replace('"mean"', '"blend"'), init.replace("mine.mean", "mine.blend")
    directory = tmp_path_factory.mktemp("somebody") / "mine"
    directory.mkdir()
    (directory / "__init__.py").write_text(init)
    code = code.replace("    AttentionContext,\n", "    AttentionContext,\n    AttentionMaps,\n")
    (directory / "blend.py").write_text(code + MAP)
    return directory


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("mega", "layers.0.mega_layer.attention.share"),
        ("flash", "layers.0.gau.attention.share"),
        ("transformer", "layers.0.self_attn.attention.share"),
    ],
)
def test_it_trains_resumes_and_validates(mine, tiny_listops, tmp_path, family, name):
    flags = ["--user-dir", mine, "--arch", f"{family}_lra_listop", "--attention", "blend"]
    flags += ["--blend-share", "0.25", "--no-epoch-checkpoints"]
    log = train(tiny_listops, tmp_path / "run", *flags, "--max-update", "3")
    assert "'blend_share': 0.25" in log
    assert "MeanAttention()" in log
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    code = (
        "import sys, torch\n"
        "share = torch.load(sys.argv[1])['model']['encoder.encoder.' + sys.argv[2]]\n"
        "assert (share - 0.25).abs().max() < 0.1 and share.unique().numel() > 1, share"
    )
    succeed(sys.executable, "-c", code, checkpoint, name)
    log = train(tiny_listops, tmp_path / "run", *flags, "--max-update", "5")
    assert [step["num_updates"] for step in logged(log, "train_inner")] == ["4", "5"]
    log = succeed(
        "fairseq-validate", tiny_listops, "--user-dir", mine, "--path", checkpoint,
        "--valid-subset", "test", "--log-format", "json",
    )  # fmt: skip
    assert 0 <= float(logged(log, "test")[-1]["test_accuracy"]) <= 100


def test_a_bad_value_of_its_option(mine, tiny_listops, tmp_path):
    answer = call(
        *training_command(
            tiny_listops, tmp_path / "run", "--user-dir", mine, "--attention", "blend",
            "--blend-share", "nan",
        )
    )  # fmt: skip
    assert answer.returncode == 1
    assert "--blend-share is nan; it must be a number" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_its_maps_are_drawn(mine, tiny_listops, tmp_path):
    run = tmp_path / "runs" / "blend"
    train(tiny_listops, run, "--user-dir", mine, "--attention", "blend", "--max-update", "2")
    succeed(
        sys.executable, "-m", "fairseq_csp.analysis", "maps", run / "checkpoint_last.pt",
        "--user-dir", mine, "--data", tiny_listops, "--out", tmp_path / "maps.png",
    )  # fmt: skip
    assert (tmp_path / "maps.png").stat().st_size > 1000


def test_options_are_listed_by_help():
    text = build_attention("csp", value_dim=4).__doc__
    assert re.search(r"group_size: positions CSP sorts together.* \(default: 2\)", text)
    assert re.search(r"shift: .* \(exponential, linear, none; default: exponential\)", text)


def test_train_lra_takes_it_but_not_what_else_lies_there(mine, tiny_listops, tmp_path):
    # not fairseq_csp: fairseq looks for modules beside a user directory first
    for name in ("torch", "fairseq", "json", "ctypes", "runpy", "preprocess"):
        (mine.parent / f"{name}.py").write_text("raise SystemExit('run from where it is called')")
    command = [
        "bash", ROOT / "train_lra.sh", "user_dir=mine", "model_name=mega", "dataset_name=listops",
        "preset=demo", "attention=blend", f"data_dir={tiny_listops}",
        f"save_dir={tmp_path / 'run'}",
        "--", "--max-update", "2", "--blend-share", "0.5", *SMALL,
    ]  # fmt: skip
    answer = subprocess.run(
        command, cwd=mine.parent, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "| mega_lra_listop | blend | test accuracy " in answer.stdout
    command[command.index("attention=blend")] = "attention=median"
    answer = subprocess.run(
        command, cwd=mine.parent, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert "attention is 'median'; it must be one of " in answer.stderr
    assert ", blend" in answer.stderr


def test_train_lra_tells_the_files_of_a_user_directory_from_its_functions(mine, tmp_path):
    (mine / "helper.py").touch()
    command = ["user_dir=" + str(mine), "model_name=mega", "dataset_name=listops"]
    command += ["attention=helper", f"save_dir={tmp_path / 'run'}"]
    answer = call("bash", ROOT / "train_lra.sh", *command)
    assert answer.returncode == 2
    assert "attention is 'helper'; it must be one of " in answer.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["channel_wise_sample_permutation", "build_attention"])
def test_the_readmes_other_programs_run(name):
    (program,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if f"from fairseq_csp import {name}" in block
    )
    expected = re.search(r"^# tensor\((.*)\)$", program, re.MULTILINE)
    if expected:
        program += f"assert mixed.tolist() == {expected.group(1)}, mixed\n"
    else:
        program += "assert out.shape == (2, 100, 64)\n"
    succeed(sys.executable, "-c", program)
