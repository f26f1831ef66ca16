from loadtest.prompt import WORDS, Prompts
from loadtest.scenario import SCENARIOS, Shape

PLAIN = Prompts(seed=1, shapes=(Shape(prompt_words=32, max_tokens=8),))
SHARED = Prompts(seed=1, shapes=(Shape(prompt_words=16, max_tokens=8, shared_words=600),))


def test_the_same_seed_gives_the_same_prompts() -> None:
    again = Prompts(seed=1, shapes=PLAIN.shapes)
    assert [PLAIN.text("measured", i) for i in range(8)] == [again.text("measured", i) for i in range(8)]


def test_no_two_requests_of_a_run_begin_alike() -> None:
    texts = [PLAIN.text(phase, i) for phase in ("warmup", "measured") for i in range(64)]
    assert len({" ".join(text.split()[:8]) for text in texts}) == len(texts)


def test_another_seed_gives_other_prompts() -> None:
    assert Prompts(seed=2, shapes=PLAIN.shapes).text("measured", 0) != PLAIN.text("measured", 0)


def test_prompts_have_the_words_asked_for() -> None:
    assert len(PLAIN.text("measured", 0).split()) == 32
    assert len(SHARED.text("measured", 0).split()) == 616


def test_shared_words_come_first_and_are_the_same_for_all() -> None:
    first, second = (SHARED.text("measured", i).split() for i in range(2))
    assert first[:600] == second[:600]
    assert first[600:] != second[600:]


def test_a_warmup_does_not_warm_the_shared_prefix() -> None:
    assert SHARED.text("warmup", 0).split()[:600] != SHARED.text("measured", 0).split()[:600]


def test_shapes_are_drawn_by_weight() -> None:
    rare, common = Shape(prompt_words=1, max_tokens=1, weight=1), Shape(prompt_words=2, max_tokens=1, weight=9)
    drawn = [Prompts(0, (rare, common)).shape("measured", i) for i in range(400)]
    assert 300 < drawn.count(common) < 400


def test_words_and_scenario_names_are_unique() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
