"""Label files of every make, through `judge data import`, `judge init` and `judge agree`."""

import gzip
import io
import json
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.commands.data import data
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from tests.test_label_cells import lines, rows_of, run, text, verdicts

COUNT = 20
MAP = ("--map", "source=source,candidate=mt,label=label")
CSV = "source,mt,label\n" + "".join(f"{text(i, 1)},{text(i, 2)},{i % 11}\n" for i in range(COUNT))


def judge(*argv: str) -> str:
    """Run `judge`; give what it printed, or raise its UserError."""
    done = CliRunner().invoke(app, list(argv))
    if done.exception is not None:
        raise done.exception
    return done.output


# --- Parquet ---


def binary(kind: Any) -> Callable[[list[bytes]], Any]:
    return lambda cells: arrow.array(cells, kind)


def nested(cells: list[bytes]) -> Any:
    return arrow.array([{"deep": [cell]} for cell in cells])


KINDS: dict[str, tuple[Callable[[list[bytes]], Any], str]] = {
    "binary": (binary(arrow.binary()), "mt"),
    "large binary": (binary(arrow.large_binary()), "mt"),
    "dictionary": (lambda cells: arrow.array(cells, arrow.binary()).dictionary_encode(), "mt"),
    "list in a struct": (nested, "mt.deep.0"),
    "fixed size": (lambda cells: arrow.array([c[:12] for c in cells], arrow.binary(12)), "mt"),
}


def parquet_file(folder: Path, kind: str, cells: list[bytes]) -> str:
    table = {
        "source": arrow.array([text(i, 1).encode() for i in range(COUNT)], arrow.binary()),
        "mt": KINDS[kind][0](cells),
        "label": [str(i % 11).encode() for i in range(COUNT)],
    }
    parquet.write_table(arrow.table(table), folder / "x.parquet")
    return str(folder / "x.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_binary_columns_of_parquet_are_texts(kind: str, tmp_path: Path) -> None:
    cells = [f"é {text(i, 2)}" for i in range(COUNT)]
    file = parquet_file(tmp_path, kind, [cell.encode() for cell in cells])
    mapped = f"source=source,candidate={KINDS[kind][1]},label=label"
    run(file, tmp_path / "out", "--map", mapped)
    read = {row.candidate for row in rows_of(tmp_path / "out").values()}
    cut = (lambda cell: cell.encode()[:12].decode()) if kind == "fixed size" else str
    assert read == set(map(cut, cells))
    said = judge("init", file)
    assert "b'" not in said
    assert "source=source" in said


def test_binary_that_is_no_text_is_refused_where_it_is_read(tmp_path: Path) -> None:
    file = parquet_file(tmp_path, "binary", [b"\xff\xfe\x00"] * COUNT)
    with pytest.raises(UserError, match=r"row 1, field mt: it holds 3 bytes that are not UTF-8"):
        run(file, tmp_path / "out", *MAP)
    run(file, tmp_path / "out", "--map", "source=source,candidate=source,label=label")
    assert len(rows_of(tmp_path / "out")) == COUNT
    assert "source=source" in judge("init", file), "a column of images is no reason to stop"


def test_agree_reads_binary_labels(tmp_path: Path) -> None:
    labels = [b"PASS" if i % 2 else b"FAIL" for i in range(COUNT)]
    table = {name: arrow.array(labels, arrow.binary()) for name in ("human", "judge")}
    parquet.write_table(arrow.table(table), tmp_path / "v.parquet")
    out = tmp_path / "out"
    flags = ("--label", "human", "--verdict", "judge", "--out", str(out))
    judge("agree", str(tmp_path / "v.parquet"), *flags)
    found = json.loads((out / "results.json").read_text())
    assert found["models"][0]["metrics"]["accuracy"]["value"] == 1


# --- what a file holds ---


def zipped(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        (
            "x.csv",
            gzip.compress(CSV.encode(), mtime=0),
            "is packed with gzip, .*: add .gz to its name",
        ),
        ("x.csv.gz", CSV.encode(), "is not packed with gzip: take .gz off its name"),
        ("x.csv", zipped("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook"),
        ("x.tsv", zipped("mimetype", "content.xml"), "is an OpenDocument file"),
        ("x.jsonl", zipped("labels.jsonl"), "is a zip archive, .*: give it the ending .zip"),
        ("x.json", b"PAR1" + bytes(40), "is a Parquet file, .*: give it the ending .parquet"),
        ("x.csv", b"%PDF-1.7\n", "is a PDF, not what .csv says"),
        ("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(40), "is an old Excel workbook"),
        ("x.parquet", gzip.compress(b"PAR1", mtime=0), "is packed with gzip"),
        ("x.csv", CSV.encode("utf-16-le"), "is UTF-16-LE without its mark, .*: add --encoding"),
        ("x.csv", CSV.encode("utf-16-be"), "is UTF-16-BE without its mark, .*: add --encoding"),
        ("x.csv", "中文,mt,score".encode("utf-16-le"), "is UTF-16-LE without its mark"),
        ("x.csv", "中文,mt,score".encode("utf-16-be"), "is UTF-16-BE without its mark"),
        ("x.csv", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("command", ["import", "init", "agree"])
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(
    command: str, name: str, content: bytes, cause: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    argv = {
        "import": ["data", "import", str(file), "--out", str(tmp_path / "out"), *MAP],
        "init": ["init", str(file)],
        "agree": ["agree", str(file), "--label", "mt", "--verdict", "label", "--out", "o"],
    }
    with pytest.raises(UserError, match=cause):
        judge(*argv[command])


def test_utf_16_without_its_mark_is_read_where_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(CSV.encode("utf-16-le"))
    run(str(file), tmp_path / "out", *MAP, "--encoding", "utf-16-le")
    assert len(rows_of(tmp_path / "out")) == COUNT


@pytest.mark.parametrize("name", ["a\0x", "\0ax"])
def test_a_zero_byte_in_a_column_name_is_no_mark_of_utf_16(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    header, _, rest = CSV.partition("\n")
    file.write_text(
        "\n".join([f"{name},{header}", *(f"q,{row}" for row in rest.split("\n") if row)])
    )
    run(str(file), tmp_path / "out", *MAP)
    assert len(rows_of(tmp_path / "out")) == COUNT


# --- files of one name ---


def test_files_of_one_stem_have_rows_and_places_of_their_own(tmp_path: Path) -> None:
    files = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "labels.csv"
        cells = (f"{folder}{i},{text(i, 1)} {folder},{text(i, 2)},{i % 11}\n" for i in range(COUNT))
        file.write_text("id,source,mt,label\n" + "".join(cells), encoding="utf-8")
        files.append(str(file))
    out = tmp_path / "out"
    run(files[0], out, *MAP, files[1])
    assert len(rows_of(out)) == 2 * COUNT
    assert {name.rpartition("-")[0] for name in rows_of(out)} == {"a-labels", "b-labels"}
    file = Path(files[1])
    file.write_text(file.read_text("utf-8").replace("b0,", "a0,"), encoding="utf-8")
    with pytest.raises(UserError, match=r"a0.*/a/labels\.csv:2 and .*/b/labels\.csv:2"):
        run(files[0], tmp_path / "c", "--map", f"id=id,{MAP[1]}", files[1])


# --- two candidates in one list ---


def listed(i: int, **more: Any) -> dict[str, Any]:
    return {"instruction": text(i, 1), "outputs": [text(i, 2), text(i, 3)]} | more


def proposed(said: str, tmp_path: Path) -> list[str]:
    """Give the proposed import's words, with a folder of the test's own."""
    after = said.partition("next:")[2].replace("\\\n", " ")
    words = shlex.split(next(line for line in after.splitlines() if "data import" in line))
    words[words.index("--out") + 1] = str(tmp_path / "out")
    return words[1:]


@pytest.mark.parametrize("column", ["outputs", "responses", "candidates", "answers"])
@pytest.mark.parametrize(("first", "second"), [(1, 2), (0, 1), ("first", "second")])
def test_a_list_of_two_candidates_is_a_pair(
    column: str, first: Any, second: Any, tmp_path: Path
) -> None:
    rows = [listed(i, human=second if i % 2 else first) for i in range(COUNT)]
    for row in rows:
        row[column] = row.pop("outputs")
    said = judge("init", lines(tmp_path, rows))
    assert f"candidate_a={column}.0,candidate_b={column}.1" in said
    judge(*proposed(said, tmp_path))
    assert verdicts(tmp_path / "out") == ["B" if i % 2 else "A" for i in range(COUNT)]
    (row, *_) = rows_of(tmp_path / "out").values()
    assert row.candidates is not None
    assert "[" not in row.candidates[0]


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("candidate", r"candidate_a=outputs\.0,candidate_b=outputs\.1"),
        ("source", r"name one item, source=outputs\.0"),
        ("reference", r"name one item, reference=outputs\.0"),
    ],
)
def test_a_list_is_no_text_of_one_field(field: str, remedy: str, tmp_path: Path) -> None:
    file = lines(tmp_path, [listed(i, label=5, mt="x") for i in range(COUNT)])
    columns = {"source": "instruction", "candidate": "mt", "label": "label", field: "outputs"}
    mapped = ",".join(f"{name}={column}" for name, column in columns.items())
    with pytest.raises(UserError, match=f"field {field}: it is a list of 2: .*{remedy}"):
        run(file, tmp_path / "out", "--map", mapped)


def test_passages_of_a_context_are_joined(tmp_path: Path) -> None:
    rows = [listed(i, label=i % 11, passages=["one", "two"], mt=text(i, 4)) for i in range(COUNT)]
    mapped = "source=instruction,candidate=mt,label=label,context=passages"
    run(lines(tmp_path, rows), tmp_path / "out", "--map", mapped)
    assert {row.context for row in rows_of(tmp_path / "out").values()} == {"one\n\ntwo"}


# --- what init proposes works as it is typed ---


def test_a_scale_with_a_negative_end_is_proposed_so_that_it_can_be_typed(tmp_path: Path) -> None:
    cells = "".join(f"{text(i, 1)},{text(i, 2)},{i % 7 - 3}\n" for i in range(28))
    (tmp_path / "m.csv").write_text("source,mt,score\n" + cells, encoding="utf-8")
    judge(*proposed(judge("init", str(tmp_path / "m.csv")), tmp_path))
    assert verdicts(tmp_path / "out") == [i % 7 - 3 for i in range(28)]


@pytest.mark.parametrize(
    ("delimiter", "flags", "names"),
    [
        ("\t", ("--header", "src,mt,label"), "src,mt,label"),
        ("~", ("--header", "src,mt,label", "--delimiter", "~"), "src,mt,label"),
        ("|", ("--header", "src,mt,label", "--quoting", "off", "--encoding", "cp1252"), "ç"),
    ],
)
def test_init_takes_the_flags_with_which_import_reads_and_proposes_them(
    delimiter: str, flags: tuple[str, ...], names: str, tmp_path: Path
) -> None:
    rows = ((text(i, 1), f"ç {text(i, 2)}", ("OK", "BAD")[i % 2]) for i in range(COUNT))
    written = "".join(delimiter.join(row) + "\n" for row in rows)
    encoding = "cp1252" if "cp1252" in flags else "utf-8"
    file = tmp_path / "h.txt"
    file.write_text(written, encoding=encoding)
    words = proposed(judge("init", str(file), *flags), tmp_path)
    for flag, said in zip(flags[::2], flags[1::2], strict=True):
        assert words[words.index(flag) + 1] == said
    judge(*words)
    assert verdicts(tmp_path / "out") == [("PASS", "FAIL")[i % 2] for i in range(COUNT)]


def test_init_says_how_an_unclear_number_is_read(tmp_path: Path) -> None:
    cells = "".join(f'{text(i, 1)},{text(i, 2)},"{i % 2},000"\n' for i in range(COUNT))
    cells = cells.replace('"0,000"', "500")
    (tmp_path / "t.csv").write_text("source,mt,score\n" + cells, encoding="utf-8")
    words = proposed(judge("init", str(tmp_path / "t.csv")), tmp_path)
    assert words[words.index("--scale") + 1] == "0-1000"
    judge(*words)
    assert verdicts(tmp_path / "out") == [1000 if i % 2 else 500 for i in range(COUNT)]


def studio(i: int) -> dict[str, Any]:
    notes = {"type": "textarea", "from_name": "notes", "value": {"text": ["because"]}}
    said = {"type": "rating", "from_name": "quality", "value": {"rating": i % 5 + 1}}
    other = {"type": "rating", "from_name": "quality", "value": {"rating": 5 - i % 5}}
    return {
        "id": i,
        "data": {"source": text(i, 1), "mt": text(i, 2)},
        "annotations": [
            {"completed_by": 1, "was_cancelled": False, "result": [notes, said][:: 1 - i % 2 * 2]},
            {"completed_by": 2, "was_cancelled": True, "result": [other]},
        ],
        "predictions": [{"result": [other]}],
    }


def argilla(i: int) -> dict[str, Any]:
    said = [("a", i % 5 + 1, "submitted"), ("b", 99, "discarded"), ("c", 99, "draft")]
    return {
        "id": f"r{i}",
        "fields": {"source": text(i, 1), "translation": text(i, 2)},
        "responses": {"quality": [{"value": v, "user_id": u, "status": s} for u, v, s in said]},
        "suggestions": {"quality": {"value": 3, "agent": "model"}},
    }


def argilla_flat(i: int) -> dict[str, Any]:
    return {
        "id": f"r{i}",
        "source": text(i, 1),
        "translation": text(i, 2),
        "quality.responses": [i % 5 + 1, 99],
        "quality.responses.users": ["a", "b"],
        "quality.responses.status": ["submitted", "discarded"],
        "quality.suggestion": 3,
    }


@pytest.mark.parametrize(
    ("row", "label", "out"),
    [
        (studio, "annotations.*.result.quality.value.rating", "cancelled"),
        (argilla, "responses.quality.*.value", "discarded"),
        (argilla_flat, "quality.responses", "discarded"),
    ],
)
def test_exports_of_annotation_tools_are_proposed_by_their_valid_answers(
    row: Callable[[int], dict[str, Any]], label: str, out: str, tmp_path: Path
) -> None:
    said = judge("init", lines(tmp_path, [row(i) for i in range(COUNT)]))
    assert f"label={label}" in said
    assert "--scale 1-5" in said
    assert f"{COUNT} answers left out: {out}" in " ".join(said.split())
    assert f"{COUNT} answers left out: {out}" in judge(*proposed(said, tmp_path))
    assert verdicts(tmp_path / "out") == [i % 5 + 1 for i in range(COUNT)]


# --- an official test set ---


def test_train_and_val_of_one_file_and_the_official_test_set_of_another(tmp_path: Path) -> None:
    rows = [{"source": text(i, 1), "mt": text(i, 2), "label": i % 11} for i in range(40)]
    out = tmp_path / "out"
    first = run(lines(tmp_path, rows, "train.jsonl"), out, *MAP, "--ratios", "0.9,0.1,0")
    assert "40 rows: kept 40" in first
    assert not (out / "judge_test.json").exists()
    test = [{"source": f"{text(i, 4)} q", "mt": f"{text(i, 5)} q", "label": 3} for i in range(9)]
    test.append(rows[0])  # which training has: it would leak
    second = run(lines(tmp_path, test, "official.jsonl"), out, *MAP, "--append", "--into", "test")
    assert "1 rows left out, their texts would be in two splits: official-10" in second
    found = read_dataset(out)
    assert len(found.train) + len(found.val) == 40
    assert len(found.train) > 30 > len(found.val) > 0
    assert len(found.test) == 9
    done = CliRunner().invoke(data, ["check", str(out)])
    assert done.exit_code == 0


@pytest.mark.parametrize("ratios", ["0,0.5,0.5", "0.9,-0.1,0.2", "0.9,0.1", "0,0,0"])
def test_ratios_without_training_rows_are_refused(ratios: str, tmp_path: Path) -> None:
    file = lines(tmp_path, [{"source": "a", "mt": "b", "label": 1}])
    with pytest.raises(UserError, match="--ratios"):
        run(file, tmp_path / "out", *MAP, "--ratios", ratios)


def test_a_check_before_the_test_set_is_there_says_what_to_do(tmp_path: Path) -> None:
    rows = [{"source": text(i, 1), "mt": text(i, 2), "label": i % 11} for i in range(40)]
    out = tmp_path / "out"
    run(lines(tmp_path, rows), out, *MAP, "--ratios", "1,0,0")
    done = CliRunner().invoke(data, ["check", str(out)])
    assert isinstance(done.exception, UserError)
    assert "judge_test.json" in str(done.exception)
