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

    def __init__(self, *faults):
        self.faults, self.opened = faults, 0

    def __iter__(self):
        fault = self.faults[self.opened] if self.opened < len(self.faults) else None
        self.opened += 1
        for index in range(10):
            if fault is not None and index == fault[0]:
                if fault[1] == "stall":
                    time.sleep(0.5)
                else:
                    raise fault[1]
            yield {"row": index}


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
    assert [row["row"] for row in read_patiently(rows, "pictures")] == list(range(10))
    assert rows.opened == len(faults) + 1


def test_dead_stream_ends_in_a_sentence(caplog):
    read = read_patiently(Rows(*[(6, LOST)] * 9), "pictures")
    assert [next(read)["row"] for _ in range(6)] == list(range(6))
    with pytest.raises(StreamError) as caught:
        next(read)
    assert str(caught.value) == (
        "the stream of 'pictures' failed 3 times in a row after 6 rows (the last: connection reset by peer): "
        "check the network and the files, and continue with --resume."
    )
    assert "trying again in 0.02 s" in caplog.text


def test_stalled_stream_ends_in_a_sentence():
    with pytest.raises(StreamError, match=r"after 0 rows \(the last: nothing came for 0.2 s\)"):
        list(read_patiently(Rows(*[(0, "stall")] * 9), "pictures"))


def test_closing_ends_the_thread():
    read = read_patiently(({"row": index} for index in range(10**9)), "endless")
    next(read)
    assert "stream of endless" in {thread.name for thread in threading.enumerate()}
    read.close()
    time.sleep(0.7)
    assert "stream of endless" not in {thread.name for thread in threading.enumerate()}
