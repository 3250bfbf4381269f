"""Files of labels as rows: what is recognised is said, texts are kept to the letter or refused."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pt_app.core.errors import UserError
from pt_app.judge_data.options import Reading
from pt_app.judge_data.reading.tables import Table, open_table
from tests.real_data import real

ROWS = [["The cat; black", "O gato, preto", "7"], ["A “dog”", "Um cão\nfiel", "2"]]
NAMES = ["src", "mt", "score"]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(rows: Sequence[Sequence[str]], **options: Any) -> str:
    text = io.StringIO()
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


def cells(table: Table) -> list[list[Any]]:
    return [list(row.values()) for _, row in table.rows()]


def refusal(source: object, reading: Reading | None = None) -> str:
    with pytest.raises(UserError) as caught:
        list(open_table(str(source), reading).rows())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is recognised ---


@pytest.mark.parametrize(("name", "delimiter"), [(",", ","), (";", ";"), ("tab", "\t"), ("|", "|")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_delimiter_is_recognised_and_said(
    tmp_path: Path, name: str, delimiter: str, line_end: str
) -> None:
    text = as_csv([NAMES, *ROWS], delimiter=delimiter, lineterminator=line_end)
    table = open_table(str(written(tmp_path / "x.csv", text)))
    assert table.columns == tuple(NAMES)
    assert cells(table) == ROWS
    assert f"delimiter {name}" in table.notes


def test_decimal_commas_do_not_hide_the_semicolon(tmp_path: Path) -> None:
    text = "src;mt;score\nYes, well;Sim, pois;7,5\nNo;Não, não;1,5\n"
    table = open_table(str(written(tmp_path / "x.csv", text)))
    assert cells(table) == [["Yes, well", "Sim, pois", "7,5"], ["No", "Não, não", "1,5"]]


def test_a_spreadsheets_sep_line_names_the_delimiter_and_is_no_row(tmp_path: Path) -> None:
    table = open_table(str(written(tmp_path / "x.csv", "sep=|\r\na|b\r\n1,2|3\r\n")))
    ((place, row),) = table.rows()
    assert row == {"a": "1,2", "b": "3"}
    assert place.row == 3


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("utf-32", "UTF-32")],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_a_byte_order_mark_is_recognised_said_and_no_part_of_a_name(
    tmp_path: Path, encoding: str, said: str, ending: str
) -> None:
    row = {"src": "ação", "mt": "\ufeffx"}
    text = {
        "csv": as_csv([list(row), list(row.values())]),
        "jsonl": json.dumps(row, ensure_ascii=False),
        "json": json.dumps([row], ensure_ascii=False, indent=1),
    }[ending]
    table = open_table(str(written(tmp_path / f"x.{ending}", text.encode(encoding))))
    assert [one for _, one in table.rows()] == [row]
    assert table.notes[0] == f"byte-order mark of {said}"


def test_another_encoding_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "src;mt\nação;“x”\n".encode("cp1252"))
    table = open_table(str(path), Reading(encoding="cp1252"))
    assert cells(table) == [["ação", "“x”"]]
    assert "encoding cp1252" in table.notes


QUOTED_TABS = {
    "marks that are text, unbalanced": ('a\tb\n"Hi he said\tx\nno\t5" wide\n', "off"),
    "marks that are text, balanced": ('a\tb\n"Hi" he said\tx\nno\t"yes"\n', "off"),
    "a mark within a text": ('a\tb\n"Hi"\tx\nno\t5" wide\n', "off"),
    "marks that would join whole lines": ('a\tb\n1\t"Hi\n2\tho"\n', "off"),
    "a tab within quotes": ('a\tb\n"one\ttwo"\tx\ny\tz\n', "on"),
    "a line end within quotes": ('a\tb\n"one\ntwo"\tx\ny\tz\n', "on"),
    "doubled marks": ('a\tb\n"Say ""hi"""\tx\n', "on"),
    "a quoted header": ('"a"\t"b"\n"x"\t"y"\n', "on"),
    "a comma, as spreadsheets quote it": ('a\tb\n"one, two"\tx\n', "on"),
}


@pytest.mark.parametrize(("text", "quoting"), QUOTED_TABS.values(), ids=QUOTED_TABS.keys())
def test_quoting_of_a_tab_file_is_decided_by_its_lines_and_said(
    tmp_path: Path, text: str, quoting: str
) -> None:
    table = open_table(str(written(tmp_path / "x.tsv", text)))
    assert f"quoting {quoting}" in table.notes
    assert all(len(row) == 2 for row in cells(table))
    marked = [cell for row in cells(table) for cell in row if cell.startswith('"')]
    assert bool(marked) == (quoting == "off")


def test_quoting_can_be_overruled(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", 'a,b\n"Hi,x\n')
    assert cells(open_table(str(path), Reading(quoting="off"))) == [['"Hi', "x"]]


def test_places_are_the_lines_at_which_rows_start(tmp_path: Path) -> None:
    text = as_csv([NAMES, *ROWS, ["x", "y", "1"]]) + "\r\n" + "last,row,3\r\n"
    table = open_table(str(written(tmp_path / "x.csv", text)))
    assert [place.row for place, _ in table.rows()] == [2, 3, 5, 7]
    lines = written(tmp_path / "x.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [place.row for place, _ in open_table(str(lines)).rows()] == [1, 3]


def test_rows_can_be_read_more_than_once(tmp_path: Path) -> None:
    table = open_table(str(written(tmp_path / "x.jsonl", '{"a": 1}\n{"b": 2}\n')))
    assert list(table.rows()) == list(table.rows())
    assert table.columns == ("a", "b")


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1},\n {"a": 2}]',
        '{"a": 1}\n{"a": 2}\n',
        '{"data": [{"a": 1}, {"a": 2}]}',
        '{\n "version": 2,\n "rows": [{"a": 1}, {"a": 2}]\n}',
    ],
)
def test_json_is_read_as_a_list_as_lines_and_wrapped_in_an_object(
    tmp_path: Path, text: str
) -> None:
    assert cells(open_table(str(written(tmp_path / "x.json", text)))) == [[1], [2]]


def test_the_columns_of_json_are_those_of_any_of_its_first_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", '{"a": 1}\n{"a": 2, "comment": "x"}\n')
    assert open_table(str(path)).columns == ("a", "comment")


def test_parquet_keeps_types_and_streams(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = [{"text": f"é {i}", "score": i / 2, "turns": [{"role": "user"}]} for i in range(3000)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    table = open_table(str(tmp_path / "x.parquet"))
    assert [row for _, row in table.rows()] == rows
    assert table.columns == ("text", "score", "turns")


# --- packed files ---


def test_gzip_tar_and_zip_are_read_without_unpacking(tmp_path: Path) -> None:
    text = as_csv([NAMES, *ROWS], delimiter="\t").encode()
    written(tmp_path / "x.tsv.gz", gzip.compress(text))
    member = written(tmp_path / "x.tsv", text)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(member, "inner/x.tsv")
        tar.add(written(tmp_path / "LICENSE", "free"), "inner/LICENSE")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.write(member, "x.tsv")
    for name in ("x.tsv.gz", "x.tar.gz::*.tsv", "x.tar.gz::inner/x.tsv", "x.zip"):
        assert cells(open_table(str(tmp_path / name))) == ROWS, name
    assert "inner/LICENSE" in refusal(tmp_path / "x.tar.gz")
    assert "0 of its members fit *.csv" in refusal(tmp_path / "x.tar.gz::*.csv")
    assert "is not a .tar or .zip" in refusal(tmp_path / "x.tsv::*")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["x.csv.gz", "x.tar.gz::x.csv", "x.zip", "x.parquet"])
def test_a_truncated_archive_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    text = as_csv([NAMES, *([f"a {i * i}", "b", "1"] for i in range(2000))])
    member = written(tmp_path / "x.csv", text)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(member, "x.csv")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(member, "x.csv")
    written(tmp_path / "x.csv.gz", gzip.compress(text.encode()))
    parquet.write_table(arrow.table({"a": list(range(2000))}), tmp_path / "x.parquet")
    path = tmp_path / kind.partition("::")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    said = refusal(tmp_path / kind)
    assert "is not a whole" in said
    assert "fetch it again" in said


def test_damage_within_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr("x.csv", "a,b\n1,2\n")
    content = (tmp_path / "x.zip").read_bytes().replace(b"1,2", b"1,3")
    written(tmp_path / "x.zip", content)
    assert "is not a whole archive" in refusal(tmp_path / "x.zip")


# --- what is refused ---


def parquet(columns: dict[str, pa.Array], names: Sequence[str] = ()) -> bytes:
    table = pa.table(columns)
    file = io.BytesIO()
    pq.write_table(table.rename_columns(names) if names else table, file)
    return file.getvalue()


REFUSED: dict[str, tuple[str, str | bytes, Sequence[str]]] = {
    "not UTF-8": ("x.csv", b"a,b\nyes,no\ncaf\xe9,x\n", ["byte 14 (0xe9)", "--encoding cp1252"]),
    "not UTF-8 JSON": ("x.jsonl", b'{"a": 1}\n{"a": "\xe9"}', ["byte 16 (0xe9)", "--encoding"]),
    "two columns of one name": (
        "x.parquet",
        parquet({"a": pa.array([1]), "b": pa.array([2])}, names=["a", "a"]),
        ["two columns are called a"],
    ),
    "a date beyond Python's": (
        "x.parquet",
        parquet({"a": pa.array([2**62], pa.timestamp("us"))}),
        ["date value out of range", "1 to 9999"],
    ),
    "a quote never closed": ("x.csv", 'a,b\n1,2\n3,"four\n5,6\n', ["line 3", "never closed"]),
    "a quote closed too early": ("x.csv", 'a,b\n1,2\n3,"4" x\n', ["line 3", "--quoting off"]),
    "a field too many": ("x.csv", "a,b\n1,2\n3,4,5\n", ["line 3: 3 fields, but 2 columns"]),
    "a field too few": ("x.tsv", "a\tb\n1\t2\n3\n", ["line 3: 1 fields, but 2 columns"]),
    "one name twice": ("x.csv", "a,b,a\n1,2,3\n", ["two columns are called a", "--header"]),
    "a column without name": ("x.csv", "a,,c\n1,2,3\n", ["column 2 has no name", "--header"]),
    "a lone carriage return": ("x.csv", "a,b\n1,x\ry\n", ["line 2", "carriage return"]),
    "carriage returns for line ends": ("x.csv", "a,b\r1,2\r", ["carriage returns alone"]),
    "no bytes": ("x.csv", "", ["x.csv is empty"]),
    "no bytes of JSON": ("x.json", "", ["x.json is empty"]),
    "blank lines": ("x.csv", "\n\n", ["x.csv holds no rows"]),
    "a header alone": ("x.csv", "a,b\n", ["x.csv holds no rows"]),
    "blank JSON": ("x.json", " \n", ["x.json holds no rows"]),
    "an empty list": ("x.json", "[]", ["x.json holds no rows"]),
    "broken JSON": ("x.json", '[{"a": 1},\n{"a" 2}]', ["line 2, column 6"]),
    "broken JSON Lines": ("x.jsonl", '{"a": 1}\n{"a": \n', ["line 2, column"]),
    "a list in a line": ("x.jsonl", '{"a": 1}\n[1]\n', ["line 2", "must be an object"]),
    "a number in a list": ("x.json", '[{"a": 1}, 2]', ["row 2", "must be an object"]),
    "half a character": ("x.jsonl", '{"a": "\\ud83d"}\n', ["line 1", "half a character"]),
    "NaN": ("x.jsonl", '{"a": NaN}\n', ["line 1", "NaN", "null"]),
    "depth": ("x.jsonl", '{"a": 1}\n' + "[" * 100_000, ["line 2"]),
    "two lists in an object": (
        "x.json",
        '{"data": [], "rows": []}',
        ["does not hold one list of rows"],
    ),
    "a spreadsheet": ("x.xlsx", b"PK", ["save it as CSV"]),
    "an unknown ending": ("x.pkl", b"\x80", ["unknown ending .pkl"]),
    "no ending": ("labels", "a,b\n", ["unknown ending (none)"]),
}


@pytest.mark.parametrize(("name", "content", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused_with_place_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, said: Sequence[str]
) -> None:
    message = refusal(written(tmp_path / name, content))
    for words in (name, *said):
        assert words in message


def test_flags_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "a,b\n1,2\n")
    assert "--encoding klingon is not known" in refusal(path, Reading(encoding="klingon"))
    assert "--encoding base64 is not known" in refusal(path, Reading(encoding="base64"))
    for name in ("utf-16", "punycode"):
        assert f"x.csv is not {name.upper()} (" in refusal(path, Reading(encoding=name))
    assert "not one character" in refusal(path, Reading(delimiter=", "))
    assert "line 1: 2 fields, but 1 columns" in refusal(path, Reading(header="a"))


def test_a_header_of_ones_own_makes_the_first_line_a_row(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", "The cat\tO gato\t\nA dog\tUm cão\tgood\n")
    table = open_table(str(path), Reading(header="src,mt,note"))
    assert [row["note"] for _, row in table.rows()] == ["", "good"]


def test_a_path_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "gone.csv is not there" in refusal(tmp_path / "gone.csv")
    written(tmp_path / "labels.csv", "a\n1\n")
    assert "is a folder: name one or more of its files (labels.csv)" in refusal(tmp_path)
    assert "is not there" in refusal("labels/gone.csv")


def test_a_hub_dataset_without_a_network_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\n(offline mode)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    said = refusal("nobody/labels-v1.1")
    assert "Couldn't reach the hub (offline mode)" in said
    assert "download its Parquet file" in said


def test_a_hub_dataset_whose_stream_breaks_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    class Stream:
        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"a": "x"}
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Stream())
    table = open_table("somebody/labels")
    with pytest.raises(UserError, match=r"reset by peer.*download its Parquet file"):
        cells(table)


def test_a_hub_dataset_streams_the_split_and_configuration_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    asked = []

    def load(*names: object, **options: object) -> list[dict[str, str]]:
        asked.append((names, options))
        return [{"a": "x"}, {"a": "y"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = open_table("somebody/labels::en", Reading(hub_split="test"))
    assert cells(table) == [["x"], ["y"]]
    assert asked == [(("somebody/labels", "en"), {"split": "test", "streaming": True})]


# --- to the letter ---

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CONTROL = st.text(st.sampled_from('\0\x01\x1c\x1e\x85\u2028\ufeff\r\n\t",;|\\ é😀a'), max_size=8)
TEXTS = st.lists(st.lists(ANY_TEXT | CONTROL, min_size=2, max_size=2), min_size=1, max_size=4)
SAME_FOLDER = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SAME_FOLDER
@given(rows=TEXTS, delimiter=st.sampled_from(",;\t|"), line_end=st.sampled_from(["\n", "\r\n"]))
def test_a_csv_file_is_kept_to_the_letter(
    tmp_path: Path, rows: list[list[str]], delimiter: str, line_end: str
) -> None:
    options = {"delimiter": delimiter, "lineterminator": line_end, "quoting": csv.QUOTE_ALL}
    path = written(tmp_path / "x.csv", as_csv([["a", "b"], *rows], **options))
    assert cells(open_table(str(path), Reading(delimiter=delimiter))) == rows


@SAME_FOLDER
@given(rows=TEXTS)
def test_an_unquoted_file_is_kept_to_the_letter_or_refused(
    tmp_path: Path, rows: list[list[str]]
) -> None:
    lines = ["a\tb", *("\t".join(row) for row in rows)]
    path = written(tmp_path / "x.tsv", "\n".join(lines) + "\n")
    plain = not any(set(cell) & set("\t\n") for row in rows for cell in row)
    try:
        read = cells(open_table(str(path), Reading(quoting="off")))
    except UserError:
        assert not plain
        return
    assert not plain or read == rows


@SAME_FOLDER
@given(rows=TEXTS, lines=st.booleans(), ascii_only=st.booleans())
def test_a_json_file_is_kept_to_the_letter(
    tmp_path: Path, rows: list[list[str]], lines: bool, ascii_only: bool
) -> None:
    values = [{"a": a, "b": b} for a, b in rows]
    dumped = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
    text = "\n".join(dumped) if lines else f"[{', '.join(dumped)}]"
    assert cells(open_table(str(written(tmp_path / "x.json", text)))) == rows


@SAME_FOLDER
@given(content=st.binary(max_size=60), ending=st.sampled_from(["csv", "tsv", "json", "jsonl"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = written(tmp_path / f"x.{ending}", content)
    try:
        table = open_table(str(path))
        rows = [row for _, row in table.rows()]
    except UserError:
        assert path.name in refusal(path)
        return
    assert rows
    assert all(set(row) <= {*table.columns} for row in rows)


# --- real files ---

REAL = {
    "mlqe-pe/en-de-dev.tar.gz::*short.tsv": 1000,
    "mlqe-pe/et-en-test.tar.gz::*short.tsv": 1000,
    "pandalm/testset-v1.json": 999,
    "llmbar/Adversarial_Neighbor.json": 134,
    "wmt-mqm-ted/mqm_ted_ende.tsv": 8435,
    "wmt-mqm-ted/mqm_ted_zhen.tsv": 9915,
    "demetr/base_id35_reference.json": 1000,
}


@pytest.mark.parametrize(("name", "count"), REAL.items(), ids=REAL.keys())
def test_real_files_are_read_whole_without_a_flag(name: str, count: int) -> None:
    path, _, member = name.partition("::")
    table = open_table(f"{real(path)}{'::' if member else ''}{member}")
    assert sum(1 for _ in table.rows()) == count
    assert name.endswith(".json") or "quoting off" in table.notes
