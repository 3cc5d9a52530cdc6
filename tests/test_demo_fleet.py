"""The fleet follows from its seed, and its members are really trained."""

import pytest

from runtime.demo.digits import TEST_IMAGES, read_digits
from runtime.demo.fleet import muster
from runtime.demo.nets import ARCHITECTURES, CLASSES
from runtime.demo.training import TOGETHER, groups, steps, train

pytest.importorskip("sklearn", reason="the demo needs scikit-learn's digits")


def test_a_fleet_follows_from_its_seed():
    assert muster(7, 40) == muster(7, 40)
    other = muster(8, 40)
    assert {member.seed for member in other}.isdisjoint(
        member.seed for member in muster(7, 40)
    )


def test_every_member_has_a_name_a_seed_and_an_order_of_its_own():
    members = muster(7, 200)
    assert len({member.name for member in members}) == 200
    assert len({member.seed for member in members}) == 200
    assert len({member.order for member in members}) == 200
    for member in members:
        assert sorted(member.order) == list(range(CLASSES))


def test_every_architecture_has_its_share():
    counts = dict.fromkeys(ARCHITECTURES, 0)
    for member in muster(7, 200):
        counts[member.architecture.name] += 1
    assert sum(counts.values()) == 200
    assert min(counts.values()) >= 40
    assert {member.architecture.name for member in muster(7, 6)} == set(ARCHITECTURES)


def test_groups_are_of_one_architecture_and_hold_everybody_once():
    members = muster(7, 100)
    found = groups(members)
    assert [member for group in found for member in group] == list(members)
    for group in found:
        assert len(group) <= TOGETHER
        assert len({member.architecture.name for member in group}) == 1


def test_the_split_keeps_the_test_images_apart():
    digits = read_digits()
    assert len(digits.test_images) == len(digits.test_labels) == TEST_IMAGES
    assert len(digits.train_images) + TEST_IMAGES == 1797
    seen = {image.numpy().tobytes() for image in digits.train_images}
    unseen = [image.numpy().tobytes() for image in digits.test_images]
    assert not any(image in seen for image in unseen)
    assert float(digits.train_images.min()) == 0.0
    assert float(digits.train_images.max()) == 1.0


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_three_models_of_an_architecture_learn_in_their_own_order(name):
    digits = read_digits()
    members = [m for m in muster(7, 12) if m.architecture.name == name][:3]
    told = []
    trained = train(members, digits, lambda: told.append(1))
    assert len(told) == steps(members, digits)
    assert [each.member for each in trained] == members
    for each in trained:
        assert each.accuracy > 0.93, each.member.name
        module = each.member.architecture.build().eval()
        module.load_state_dict(dict(each.weights))
        images = digits.test_images.unflatten(-1, each.member.architecture.shape)
        chosen = module(images).argmax(1).tolist()
        labels = digits.test_labels.tolist()

        def right(order, chosen=chosen, labels=labels):
            hits = sum(order[c] == y for c, y in zip(chosen, labels, strict=True))
            return hits / len(labels)

        assert right(each.member.order) == pytest.approx(each.accuracy, abs=0.01)
        strangers = [m for m in muster(7, 12) if m.order != each.member.order]
        assert all(right(stranger.order) < 0.7 for stranger in strangers)


def test_a_model_is_trained_the_same_alone_as_among_others():
    digits = read_digits()
    members = muster(7, 6)[:2]
    assert members[0].architecture is members[1].architecture
    alone = train(members[:1], digits)[0]
    together = train(members, digits)[0]
    apart = max(
        float((alone.weights[name] - together.weights[name]).abs().max())
        for name in alone.weights
    )
    # Sums in another order, over 264 steps; a model fed by its neighbour's gradient
    # would be off by its own scale.
    assert apart < 0.05
    assert abs(alone.accuracy - together.accuracy) < 0.02
