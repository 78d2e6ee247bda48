import pytest
import torch

from benchmarks import loss
from benchmarks.measuring import Ratio
from trainables.calibration import mis_instructed


def test_a_fifth_of_the_views_are_mis_instructed():
    _, teacher, target = loss.batch(200, 100)
    assert mis_instructed(teacher, target).float().mean().item() == pytest.approx(loss.WRONG, abs=0.03)


@pytest.mark.parametrize(("size", "classes"), [(64, 100), (16, 1000)])
def test_the_paper_written_out_is_the_same_loss_and_gradient_as_ours(size, classes):
    student, teacher, target = loss.batch(size, classes)
    chosen = loss.losses()
    values = [chosen[name](student, teacher, target) for name in ("loca", "loca, as the paper writes it")]
    torch.testing.assert_close(*values)
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert not torch.equal(chosen["loca"](student, teacher, target), chosen["kd"](student, teacher, target))


def test_views_are_not_counted_as_operations():
    x = torch.zeros(4, 6)
    with loss.Operations() as operations:
        (x[0].unsqueeze(-1).expand(6, 2) + 1).sum()
    assert sum(operations.names.values()) == 2
    assert operations.elements == 12 + 12 + 12 + 1


@pytest.mark.slow
def test_the_tables_have_every_method_and_loca_has_no_more_passes_than_one_beside_kds():
    *of_losses, of_steps, of_vocabulary = [table for table in loss.measure(quick=True) if "cuda" not in table.title]
    for table in of_losses:
        rows = {row[0]: row for row in table.rows}
        assert set(rows) == {"kd", "loca", "dkd", "loca_dkd", "loca, as the paper writes it"}
        assert all(row[1] > 0 and isinstance(row[3], Ratio) and row[4] > 0 for row in table.rows)
        for name, baseline, passes in (("loca", "kd", 1.5), ("loca_dkd", "dkd", 0.3)):
            assert rows[name][5] - rows[baseline][5] < passes
        assert rows["loca"][5] < rows["loca, as the paper writes it"][5]
        assert table.limits
    assert [row[0] for row in of_steps.rows] == ["kd", "loca", "dkd", "loca_dkd"]
    assert [row[0] for row in of_vocabulary.rows] == [loss.PLAIN, "in parts of 64", "in parts of 256"]


@pytest.mark.slow
def test_in_parts_a_process_holds_less_than_one_copy_of_the_logits_and_as_a_whole_several():
    size = loss.Tokens(2048, 8, 20_000)
    copies = {name: loss.peak_bytes(size, name, "cpu") / (4 * 2048 * 20_000) for name in (loss.PLAIN, "in parts of 64")}
    assert copies[loss.PLAIN] > 2
    assert copies["in parts of 64"] < 1
