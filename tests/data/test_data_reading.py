"""A stream that stalls or dies: every row once and in order, or a sentence."""

import threading
import time

import pytest

from hgkd_hf.data import reading
from hgkd_hf.data.reading import StreamError, read_patiently


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(reading, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(reading, "PAUSES", (0.01, 0.02))


class Rows:
    """Ten rows; `faults` are (row at which the n-th opening goes wrong, what happens there)."""

    def __init__(self, *faults, count=10):
        self.faults, self.count, self.begun = faults, count, []

    def __call__(self, place):
        fault = self.faults[len(self.begun)] if len(self.begun) < len(self.faults) else None
        self.begun.append(place)
        for index in range(place, self.count):
            if fault is not None and index == fault[0]:
                if fault[1] == "stall":
                    time.sleep(0.5)
                else:
                    raise fault[1]
            yield {"row": index}, index + 1


LOST = ConnectionResetError("connection reset\nby peer.")


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [(0, LOST)],
        [(4, LOST)],
        [(4, LOST), (4, TimeoutError())],
        [(4, LOST), (4, LOST), (5, LOST), (5, LOST), (9, LOST), (9, LOST)],  # every row that comes gives new tries
        [(3, "stall"), (7, "stall")],
    ],
)
def test_every_row_once(faults):
    rows = Rows(*faults)
    read = [(row["row"], place) for row, place in read_patiently(rows, 0, "pictures")]
    assert read == [(index, index + 1) for index in range(10)]
    assert rows.begun == [0, *(row for row, _ in faults)], "where it failed, not from the first row"


def test_begins_at_a_place():
    assert [row["row"] for row, _ in read_patiently(Rows((8, LOST)), 7, "pictures")] == [7, 8, 9]


def test_dead_stream_ends_in_a_sentence(caplog):
    read = read_patiently(Rows(*[(6, LOST)] * 9), 0, "pictures")
    assert [next(read)[0]["row"] for _ in range(6)] == list(range(6))
    with pytest.raises(StreamError) as caught:
        next(read)
    assert str(caught.value) == (
        "the stream of 'pictures' failed 3 times in a row after 6 rows (the last: connection reset by peer): "
        "check the network and the files, and continue with --resume."
    )
    assert "trying again in 0.02 s" in caplog.text


def test_stalled_stream_ends_in_a_sentence():
    with pytest.raises(StreamError, match=r"after 0 rows \(the last: nothing came for 0.2 s\)"):
        list(read_patiently(Rows(*[(0, "stall")] * 9), 0, "pictures"))


def test_closing_ends_the_thread():
    read = read_patiently(Rows(count=10**9), 0, "endless")
    next(read)
    assert "stream of endless" in {thread.name for thread in threading.enumerate()}
    read.close()
    time.sleep(0.7)
    assert "stream of endless" not in {thread.name for thread in threading.enumerate()}
