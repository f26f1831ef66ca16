# %% [markdown]
# # polydecode in a notebook
# No server and no second process: the engine runs here. Open this file as a notebook (VS Code, PyCharm, Jupytext), or
# run it as a program; `tests/test_notebook.py` does.

# %%
from polydecode import LLM, Beam, SamplingParams

llm = LLM(dtype="float32")  # the embedded SmolLM2; LLM("DIR, FILE.gguf or hub id", quantize="int8") for others

# %% [markdown]
# One prompt gives one result, a list of prompts a list; each may bring its own params. All run in one batch.

# %%
prompt = "The capital of France is"
print(llm.generate(prompt, temperature=0, max_tokens=8).text)

greedy, beams = llm.generate([prompt, prompt], [SamplingParams(temperature=0), Beam(num_beams=4, n=2)], max_tokens=8)
print(greedy.strategy, repr(greedy.text))
for choice in beams.choices:
    print(beams.strategy, choice.score, repr(choice.text))

# %% [markdown]
# Fields are the server's, by their names, and so are refusals: a ValueError that names the field.

# %%
try:
    llm.generate(prompt, num_beams=4, temperature=0.7)
except ValueError as refused:
    print(refused)

# %% [markdown]
# Chats, streams, forms of the answer.

# %%
question = [{"role": "user", "content": "What is the capital of France?"}]
print(llm.chat(question, temperature=0, max_tokens=20).text)

for delta in llm.chat(question, temperature=0, max_tokens=20, stream=True):
    print(delta.text, end="")
print()

print(llm.chat(question, structured={"choice": ["Paris", "Rome"]}).text)

# %% [markdown]
# How likely is a text, what is it like, and what did the strategy see?

# %%
texts = [f"The capital of France is {city}." for city in ("Paris", "Rome", "cheese")]
for text, scores in zip(texts, llm.score(texts), strict=True):
    print(round(scores.total, 2), text)

cat, kitten, tax = llm.embed(["A cat sleeps.", "A kitten is asleep.", "Taxes are due in May."])


def similarity(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


print(similarity(cat.vector, kitten.vector), similarity(cat.vector, tax.vector))

for step in llm.trace(prompt, num_beams=2, max_tokens=2).trace:
    print(step.step, step.kind, step.values)
