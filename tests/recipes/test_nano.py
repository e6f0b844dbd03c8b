"""What nano is: its size, and how it sees."""

from cascadevl.recipes import nano


def test_nano_is_within_its_size() -> None:
    parts = nano.new_parts()
    num_parameters = sum(p.numel() for p in parts.model.parameters())
    assert 5e6 <= num_parameters <= 10e6
    assert parts.spec.resize == "pil" and parts.spec.max_tiles == 6
