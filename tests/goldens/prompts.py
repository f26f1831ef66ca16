"""The prompts behind `smollm2_greedy.json`, in order of preference: the first 20 without a near tie are kept.

A chat prompt is a list of messages and is rendered by the model's own template; a plain one is completed as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

HARBOUR = (
    "The harbour had been quiet since the last ferry left at nine. Two fishermen sat on upturned crates beside the ice "
    "house and argued about the weather, as they did every evening, while a boy of about twelve coiled a rope that was "
    "far too long for him. Nobody noticed the grey boat at first. It came in without lights, very slowly, its engine "
    "so low that the gulls on the breakwater did not stir. When it touched the stones, a woman in a yellow coat "
    "stepped ashore, looked once at the clock above the customs office, and asked the boy whether the road to the "
    "lighthouse was still open. He said that it was, but that no one had lived there for eleven years. She nodded as "
    "if this were good news, paid him with a coin he had never seen before, and walked off along the wall. The older "
    "of the two fishermen took the pipe from his mouth and said"
)
BATTERIES = (
    "Abstract. We study how the capacity of lithium-ion cells declines when they are charged at low temperature. "
    "Forty-eight cylindrical cells from three manufacturers were cycled between 2.5 and 4.2 volts at -10, 0, 10 and 25 "
    "degrees Celsius, at charge rates of one half, one and two times their nominal capacity, until they had lost a "
    "fifth of it. Cells that were charged at two times their capacity at -10 degrees reached that point after 61 "
    "cycles, those at 25 degrees after 1,140. Post-mortem microscopy shows metallic lithium on the anode of every cell "
    "that was charged below 0 degrees, and on none of the others. A pulse that warms the cell to 15 degrees before "
    "charging restores nine tenths of the lost life at a cost of 3 percent of the stored energy. We conclude that"
)
QUEUE = '''class Queue:
    """A first-in first-out queue with a fixed capacity."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be positive")
        self.capacity = capacity
        self.items: list[object] = []

    def push(self, item: object) -> None:
        if len(self.items) == self.capacity:
            raise OverflowError("queue is full")
        self.items.append(item)

    def pop(self) -> object:
        if not self.items:
            raise IndexError("queue is empty")
        return self.items.pop(0)

    def is_full(self) -> bool:
'''
JSON_RECORDS = '{"id": 1, "name": "Ada", "year": 1815}\n{"id": 2, "name": "Grace", "year": 1906}\n{"id": 3, "name":'


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly one of `text` and `messages` is filled; `scored` asks for the prompt's own log-probs as well."""

    name: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    scored: bool = False


def ask(name: str, *turns: str, system: str = "", scored: bool = False) -> Prompt:
    """A chat prompt; the turns alternate between user and assistant, the user first and last."""
    head = (("system", system),) if system else ()
    roles = ("user", "assistant")
    messages = head + tuple((roles[i % 2], turn) for i, turn in enumerate(turns))
    return Prompt(name, messages=messages, scored=scored)


PROMPTS = (
    Prompt("capital", "The capital of France is", scored=True),
    Prompt("one_word", "Once"),
    Prompt("seasons", "There are four seasons in a year:"),
    Prompt("list", "Shopping list:\n1. Milk\n2. Eggs\n3."),
    Prompt("python_fibonacci", "def fibonacci(n):\n"),
    Prompt("python_class", QUEUE, scored=True),
    Prompt("sql", "-- the ten customers who spent most in 2023\nSELECT", scored=True),
    Prompt("c_main", '#include <stdio.h>\n\nint main(void) {\n    printf("'),
    Prompt("json_lines", JSON_RECORDS),
    Prompt("german", "Der schnelle braune Fuchs springt über den faulen Hund und"),
    Prompt("spanish", "Había una vez un niño que vivía en un pueblo pequeño y"),
    Prompt("chinese", "从前有座山,山里有座庙,庙里", scored=True),
    Prompt("long_story", HARBOUR, scored=True),
    Prompt("long_abstract", BATTERIES),
    ask("chat_hello", "Hello!"),
    ask("chat_capital", "What is the capital of Italy? Answer in one word."),
    ask("chat_python", "Write a Python function that reverses a string."),
    ask("chat_system", "Tell me about the sea.", system="You are a pirate. Keep it short."),
    ask("chat_turns", "My name is Otto.", "Nice to meet you, Otto!", "What is my name?"),
    ask("chat_french", "Traduis en français : The cat sleeps on the table."),
    ask("chat_sum", "What is 2 + 3? Reply with the number only."),
    Prompt("arithmetic", "1 + 1 = 2\n2 + 2 = 4\n3 + 3 ="),
    Prompt("russian", "Жили-были дед и баба, и была у них"),
    Prompt("html", "<!DOCTYPE html>\n<html>\n<head>\n<title>"),
    Prompt("recipe", "To bake a simple loaf of bread, first"),
    ask("chat_haiku", "Write a haiku about rain."),
    Prompt("letter", "Dear Sir or Madam,\n\nI am writing to"),
    Prompt("physics", "Newton's second law states that"),
)
