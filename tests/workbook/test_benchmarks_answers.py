"""Answer files: read back as written, continued after an interruption, damaged ones noticed."""

import json

import pytest

from workbook.benchmarks.answers import append, continue_file, read_answers

SETTINGS = {"benchmark": "pope_random", "model": "m", "rows": 3, "runs": 1}
TEXTS = ["Yes", "a\u2028b\u2029c\u0085d\r\ne", "\u7b54\u6848\u662f\u5426 \U0001f600"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "answers" / "a.jsonl"
    assert continue_file(path, SETTINGS) == set()
    append(path, [{"id": str(i), "image": b"x", "run": 0, "response": text} for i, text in enumerate(TEXTS)])
    return path


def test_answers_are_read_back_as_written(file):
    settings, (run,) = read_answers(file)
    assert settings == SETTINGS
    assert run == [{"id": str(i), "run": 0, "response": text} for i, text in enumerate(TEXTS)]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4  # also for tools that split at other separators


@pytest.mark.parametrize("tail", ['{"id": "3", "run": 0, "resp', "\u00e9"])
def test_a_half_written_line_is_dropped(file, tail):
    whole = file.read_bytes()
    file.write_bytes(whole + tail.encode()[:-1])
    assert continue_file(file, SETTINGS) == {(0, "0"), (0, "1"), (0, "2")}
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"\n", b'{"settings": {"mod'])
def test_a_file_without_a_whole_line_is_begun_again(file, content):
    file.write_bytes(content)
    assert continue_file(file, SETTINGS) == set()
    assert read_answers(file) == (SETTINGS, [[]])


def outcome(file):
    try:
        return read_answers(file)
    except ValueError as error:
        return str(error)


def test_every_flipped_bit_is_noticed(file):
    data, expected = file.read_bytes(), read_answers(file)
    for place in range(len(data)):
        for bit in (0, 3, 5, 7):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            file.write_bytes(bytes(flipped))
            found = outcome(file)
            if found != expected:  # but for the case of a letter in an escape, which changes nothing
                assert found.startswith(str(file))
                assert "remove" in found


def test_files_without_checksums_are_read(file):
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["crc32"]
    expected = read_answers(file)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert read_answers(file) == expected


def test_faults_name_file_line_and_remedy(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate the model on the benchmark first"):
        read_answers(tmp_path / "none.jsonl")
    append(file, [{"id": "1", "run": 0, "response": "no"}])
    with pytest.raises(ValueError, match="holds a row twice: remove the file"):
        read_answers(file)
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "1"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="does not begin with settings"):
        read_answers(other)
    continue_file(tmp_path / "b.jsonl", SETTINGS)
    with pytest.warns(UserWarning, match="other settings .model: 'm' there, 'n' now"):
        assert continue_file(tmp_path / "b.jsonl", SETTINGS | {"model": "n"}) == set()
