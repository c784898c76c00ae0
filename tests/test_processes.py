import pytest

from unbraid import processes


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_piece_counts_once_and_every_process_has_as_many(monkeypatch, count, number):
    monkeypatch.setattr(processes, "num_processes", lambda: number)
    shares = []
    for index in range(number):
        monkeypatch.setattr(processes, "process_index", lambda index=index: index)
        shares.append(list(processes.deal(count)))
    assert {len(share) for share in shares} == {-(-count // number)}
    assert sorted(index for share in shares for index, counts in share if counts) == list(range(count))
    assert all(0 <= index < count for share in shares for index, _ in share)
