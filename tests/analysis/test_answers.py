"""The sentences of a report say what the numbers support, and no more."""

from dataclasses import replace
from typing import Any

import pytest

from analysis import load_history, load_runs, load_studies, report, verdicts


@pytest.fixture
def say(store: str, write: Any, made: Any) -> Any:
    """Sentences of a study of the store, or of one written for the test."""

    def of(study: str, runs: Any = None, **record: Any) -> list[str]:
        if runs is not None:
            write(made.study_record(study, **record), runs)
        return verdicts(load_runs(store, study), load_history(store, study), load_studies(store, study))

    return of


def test_a_gain_is_the_first_sentence_with_its_interval(say: Any, made: Any) -> None:
    # Differences 3, 4 and 5: mean 4, SD 1, so half the interval is 4.3027 / sqrt(3).
    runs = made.sweep({("kd", None): (70.0, 71.0, 72.0), ("loca", 0.9): (73.0, 75.0, 77.0)}, epochs=2)
    said = say("gain", runs)
    assert said[0] == "LoCa at alpha 0.9 gained 4.00 ± 2.48 points over KD for digits/cnn32-cnn3."
    assert "p = 0.020" in said[1]
    assert "Holm" not in said[1]  # one comparison needs no correction


def test_the_same_gain_of_the_best_of_four_points_is_only_a_lead(say: Any) -> None:
    said = say("ablation")
    assert said[0] == (
        "LoCa at alpha 0.5 came out 4.00 ± 2.48 points above KD for digits/cnn32-cnn3: a lead to confirm on fresh "
        "seeds (kdstudy confirm), no more, since among 4 comparisons one is above by chance too often."
    )
    assert "(n = 3), the 95 % interval is +1.52 to +6.48 points and p = 0.020 (p = 0.061 by Holm's" in said[1]
    assert "the teacher was mis-instructing on 20.0 % of the views" in said[1]
    assert "resolve a difference of" in said[1]
    assert "best of 4 points" in said[1]
    assert "smallest alpha tried" in said[1]


def test_what_fresh_seeds_say_of_the_best_point_stands_beside_it(
    say: Any, made: Any, store: str, tmp_path: Any
) -> None:
    chosen = made.sweep({("kd", None): (70.0, 71.0, 72.0), ("loca", 0.9): (73.0, 75.0, 77.0)}, epochs=2)
    fresh = made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (70.5, 71.6)}, epochs=2, stage="confirm")
    runs = [*chosen, *(replace(run, seed=2_000_000 + run.seed) for run in fresh)]
    said = say("confirmed", runs)
    assert said[0].startswith("LoCa at alpha 0.9 gained 4.00")
    # Differences 0.5 and 0.6: mean 0.55, half the interval 12.706 * 0.0707 / sqrt(2).
    assert said[1].endswith(
        "On 2 fresh seeds it came out +0.55 (−0.09 to +1.19) points against KD, which shows no gain."
    )
    report(store, "confirmed", tmp_path / "out")
    table = (tmp_path / "out/tables/confirmed.csv").read_text().splitlines()
    assert table[0].startswith("point,chosen_mean,chosen_sd")
    row = dict(zip(table[0].split(","), table[2].split(","), strict=True))
    assert (float(row["chosen_mean"]), float(row["fresh_mean"])) == (75.0, pytest.approx(71.05))
    assert float(row["change"]) == pytest.approx(-3.95)


def test_a_tight_difference_around_zero_is_called_none(say: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (70.0, 71.0, 72.0), ("loca", 0.9): (70.02, 70.99, 72.01)}, epochs=2)
    said = say("equivalent", runs)
    assert "is no different from KD by as much as 0.2 points: +0.01" in said[0]


def test_a_difference_that_could_be_chance_is_no_gain(say: Any) -> None:
    said = say("search")
    assert said[0].startswith("No gain over KD could be shown")
    assert "+1.25 ± 3.18 points, which includes zero" in said[0]
    assert "would need 3 seeds" in said[1]


def test_a_loss_is_called_a_loss(say: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (75.0, 76.0, 77.0), ("loca", 0.9): (70.0, 71.5, 72.0)}, epochs=2)
    assert say("loss", runs)[0] == (
        "No alpha reached KD for digits/cnn32-cnn3: the best, LoCa at alpha 0.9, lost 4.83 ± 0.72 points to it."
    )


def test_one_seed_shows_nothing_yet_and_says_so(say: Any) -> None:
    said = say("one-seed")
    assert "+3.00 points against KD" in said[0]
    assert "one seed gives no interval" in said[0]
    assert any(each.startswith("One seed a point") for each in said)
    assert not any("resolve" in each for each in said)


def test_equal_differences_of_every_seed_have_no_interval(say: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (75.0, 76.0), ("loca", 0.9): (75.0, 76.0)}, epochs=2)
    assert "0.00 points against KD for digits/cnn32-cnn3 with each of 2 seeds" in say("equal", runs)[0]


def test_without_kd_no_gain_is_told(say: Any, made: Any) -> None:
    said = say("no-kd", made.sweep({("ce", None): (60.0, 61.0), ("loca", 0.9): (70.0, 71.0)}, epochs=2))
    assert "there is no one kd to compare with" in said[0]


def test_without_an_alpha_nothing_is_said_about_alpha(say: Any) -> None:
    assert say("going-on")[:2] == [
        "No point with an alpha has finished for digits/cnn32-cnn3, so nothing can be said about alpha.",
        "Finished: kd 70.50 %.",
    ]
    assert "1 of 3 runs is still running." in say("going-on")


def test_a_baseline_that_did_better_is_named(say: Any, made: Any) -> None:
    runs = made.sweep(
        {("kd", None): (70.0, 71.0), ("kd_one_hot", None): (80.0, 81.0), ("loca", 0.9): (75.0, 76.5)}, epochs=2
    )
    assert "Without any alpha, kd_one_hot (80.50 %) did better than its 75.75 %." in say("better", runs)[1]


def test_cuts_and_failures_are_told(say: Any) -> None:
    said = say("ablation")
    assert "ablation was cut (epochs 30 -> 4): its numbers are not those of the full protocol." in said
    assert "1 of 21 runs failed and is in no mean." in said
    assert "Views left the simplex and were capped at alpha 1.2 (12.5 % of all views)." in said
    assert "1 of 9 runs was stopped early by the pruner and is in no mean." in say("search")


def test_choosing_alpha_by_an_ablation_is_choosing_by_test_accuracy(say: Any) -> None:
    assert any("chooses by test accuracy" in each for each in say("ablation"))
    assert not any("by test accuracy" in each for each in say("search"))


def test_the_selection_rule_of_the_papers_is_printed(say: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (75.0, 76.5)}, stage="search", epochs=2)
    said = say("as-in-the-papers", runs, mode="search", selection="paper")
    assert any("Points were chosen by test accuracy (selection: paper)" in each for each in said)


def test_a_ratio_too_low_is_told(say: Any) -> None:
    assert any("mis-instructing on 0.2 % of the views, too few" in each for each in say("paper"))
    assert not any("too few" in each for each in say("ablation"))


def test_when_nothing_moved_it_is_told(say: Any, made: Any) -> None:
    still = {("kd", None): (70.0, 71.0, 72.0), ("loca", 0.9): (70.5, 70.8, 72.0), ("loca", 0.5): (69.5, 71.3, 72.1)}
    assert any(each.startswith("Nothing moved") for each in say("still", made.sweep(still, epochs=2)))
    assert not any(each.startswith("Nothing moved") for each in say("ablation"))


def test_accuracy_that_fell_is_told(say: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (75.0, 76.5)}, best_gain=6.0)
    fell = [each for each in say("fell", runs) if each.startswith("Accuracy fell")]
    assert fell == ["Accuracy fell from the best to the last epoch: kd 76.50 to 70.50, loca α 0.9 81.75 to 75.75."]
    assert not any(each.startswith("Accuracy fell") for each in say("ablation"))


def test_unstable_training_is_told(say: Any, made: Any) -> None:
    runs = [
        made.Run("kd", 1, 0.0, curve=(50.0, 60.0, 70.0, 45.0)),
        made.Run("loca", 1, 0.0, 0.9, curve=(50.0, 30.0, 70.0, 71.0)),
    ]
    unstable = [each for each in say("unstable", runs) if "unstable" in each]
    assert len(unstable) == 1
    assert "1 run(s) (kd) lost more than 10 points" in unstable[0]  # a dip in the first half is ordinary


def test_the_finite_test_set_is_told(say: Any) -> None:
    # Wilson: 75 % of 797 images
    assert any(
        "The 797 test images place an accuracy of 75.00 % between 71.9 and 77.9 %" in each for each in say("ablation")
    )


def test_the_studys_own_warnings_are_passed_on(say: Any, made: Any) -> None:
    said = say(
        "warned", made.sweep({("kd", None): (70.0,)}, epochs=1), warnings=["the teacher has seen the validation part"]
    )
    assert said[-1] == "the teacher has seen the validation part"


def test_several_pairs_are_answered_one_by_one_and_named_in_warnings(say: Any, made: Any) -> None:
    two = {("kd", None): (70.0, 71.0), ("loca", 0.9): (75.0, 76.5)}
    runs = [*made.sweep(two, epochs=2), *made.sweep(two, epochs=2, pair="digits/cnn32-cnn8", ratio=0.001)]
    said = say("two-pairs", runs)
    assert "digits/cnn32-cnn3" in said[0]
    assert "digits/cnn32-cnn8" in said[2]
    assert any(each.startswith("digits/cnn32-cnn8: the teacher was mis-instructing on 0.1 %") for each in said)
