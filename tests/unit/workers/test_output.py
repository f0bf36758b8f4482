"""Reading what a program prints."""

from hypothesis import given
from hypothesis import strategies as st

from trine_workers.output import Output

LINE = (
    "step 00100 (12.3%) | loss: 3.21 | lrm: 1.00 | dt: 320ms | tok/sec: 1,640,000"
    " | mfu: 39.8% | epoch: 1 | remaining: 263s"
)


def test_the_progress_line_of_the_contract_is_understood() -> None:
    output = Output()
    assert output.feed(f"\r{LINE}\r".encode())
    assert output.progress is not None
    assert output.progress.step == 100
    assert abs(output.progress.share - 0.123) < 1e-9
    assert output.progress.facts == {
        "loss": 3.21,
        "tokens_per_second": 1_640_000,
        "mfu_percent": 39.8,
        "remaining_seconds": 263,
    }


def test_the_summary_is_read_with_and_without_a_last_line_end() -> None:
    output = Output()
    output.feed(b"---\nval_bpb: 0.997900\ntotal_tokens_M: 499.6\nnum_params_M: 50.3\ndepth: 8")
    output.end()
    assert output.metrics == {
        "val_bpb": 0.9979,
        "total_tokens_m": 499.6,
        "num_params_m": 50.3,
        "depth": 8,
    }


def test_the_tail_holds_the_last_50_lines_in_order_without_progress() -> None:
    output = Output()
    for number in range(70):
        output.feed(f"line {number}\n\r{LINE}\r\n".encode())
    assert list(output.tail) == [f"line {number}" for number in range(20, 70)]


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_any_bytes_in_any_pieces_give_the_same_and_never_fail(chunks: list[bytes]) -> None:
    one, other = Output(), Output()
    for chunk in chunks:
        one.feed(chunk)
    other.feed(b"".join(chunks))
    one.end()
    other.end()
    assert list(one.tail) == list(other.tail)
    assert one.metrics == other.metrics


def test_a_line_without_end_takes_bounded_memory() -> None:
    output = Output()
    for _ in range(50):
        output.feed(b"x" * 1_000_000)
    assert len(output._rest) <= 16_384
