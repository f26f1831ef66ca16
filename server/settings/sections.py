"""Every setting, once: its name, type, bounds, default and description, in the sections of `configs/default.toml`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from decoding.contract.params import DRAFT, MAIN
from decoding.contract.quantize import COMPUTES_IN, QUANTIZED_ON, Quantize

GIB = 1 << 30
_ALSO = re.compile(r"([A-Za-z0-9][\w.-]{0,63})=(.+)")
EMPTY_KEY = "a key is empty; leave api_key out to ask for none"


def _split(value: object) -> object:
    """Flags and the environment give one string: names divided by commas."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _named(also: str) -> tuple[str, str]:
    """Name and model of NAME=MODEL."""
    match = _ALSO.fullmatch(also)
    if match is None:
        raise ValueError("must be NAME=MODEL, the name of letters, digits, dots, dashes and underscores")
    return match[1], match[2]


def _keys(value: object) -> object:
    """Like names, but an empty key is a mistake (a variable that is not set) and must not open the server."""
    if not isinstance(value, str):
        return value
    keys = [part.strip() for part in value.split(",")]  # a mounted secret ends with a line end
    if not all(keys):
        raise ValueError(EMPTY_KEY)
    if len(keys) > 1 and min(map(len, keys)) == 1:
        raise ValueError("a key has one character; commas divide keys and cannot be part of one")
    return keys


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[Annotated[SecretStr, Field(min_length=1)], ...], NoDecode, BeforeValidator(_keys)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A group of settings: the object that whoever works by them is handed. Its docstring is its title in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ModelSettings(Section):
    """Model"""

    model: str = Field(
        "",
        description="Directory of a Hugging Face model (safetensors), GGUF file or hub id; empty: embedded SmolLM2.",
    )
    served_model_name: Names = Field(
        (), description="Names the API knows the model by (repeatable); empty: taken from the model."
    )
    chat_template: str = Field(
        "", description="File with a chat template (jinja2, run in the sandbox) instead of the model's; empty: its own."
    )
    tool_parser: Literal["auto", "hermes", "llama3_json", "mistral", "none"] = Field(
        "auto",
        description="How the model writes tool calls; auto: as its chat template shows, hermes if that knows no tools.",
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        "auto", description="Split <think>…</think> off as reasoning_content; auto: if the chat template knows it."
    )
    generation_defaults: Literal["openai", "model"] = Field(
        "openai",
        description="What holds where a request says nothing: OpenAI's values, or the model's generation_config.json.",
    )
    draft_model: str = Field(
        "",
        description="Draft model for speculative decoding (given likewise) with the model's tokens; empty: none.",
    )
    also: Names = Field(
        (),
        description="NAME=MODEL: a further model (given likewise) with the model's tokens, for strategies in which"
        " requests name it (repeatable). All models share kv_memory, each for equally many tokens.",
    )
    plugin: Names = Field(
        (),
        description="Python files, modules or entry points (polydecode.plugins) with strategies, steps and judges of"
        " other people (repeatable). They run as part of the server; nothing is loaded that is not named here.",
    )
    allow_download: bool = Field(False, description="Let a hub id be downloaded at start; nothing else ever is.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the model runs; auto takes CUDA if there is any."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of weights and KV cache; auto chooses by model and device."
    )
    quantize: Quantize = Field(
        "none",
        description="Smaller weights in linear layers: int8 or int4 on a CPU, fp8 or int4 (extra torchao) on a GPU.",
    )
    max_model_len: int = Field(0, ge=0, description="Longest context in tokens; 0: what the model was trained for.")
    embedding_pooling: Literal["mean", "last"] = Field(
        "mean", description="Embeddings are the mean of the prompt's last hidden states, or the last token's."
    )
    batch_invariant: bool = Field(
        False,
        description="Answers independent of the batch's other rows; always so on CPU, slower on CUDA, bit for bit.",
    )

    @property
    def beside(self) -> dict[str, str]:
        """The models beside the main one, by name."""
        draft = {DRAFT: self.draft_model} if self.draft_model else {}
        return draft | dict(_named(each) for each in self.also)

    @field_validator("also")
    @classmethod
    def _are_named(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        names = [_named(each)[0] for each in also]
        if len(set(names)) < len(names):
            raise ValueError("names two models alike")
        if not {MAIN, DRAFT}.isdisjoint(names):
            raise ValueError(f"{MAIN} and {DRAFT} are the names of --model and --draft-model")
        return also

    @model_validator(mode="after")
    def _can_be_quantized(self) -> Self:
        """What can be said before the machine is known."""
        if self.quantize == "none":
            return self
        homes = [device for device, forms in QUANTIZED_ON.items() if self.quantize in forms]
        devices = [device for device in homes if self.device in ("auto", device)]
        if not devices:
            raise ValueError(f"quantize = {self.quantize} is for {'the CPU' if homes == ['cpu'] else 'a GPU'}")
        computed = [COMPUTES_IN[device] for device in devices]
        if self.dtype not in ("auto", *computed):
            raise ValueError(f"quantize = {self.quantize} computes in {' or '.join(computed)}")
        if self.batch_invariant and devices == ["cuda"]:
            raise ValueError(f"quantize = {self.quantize} cannot be batch invariant")
        return self


class EngineSettings(Section):
    """Engine"""

    max_rows: int = Field(256, ge=1, le=65536, description="Most rows (sequences) decoded in one batch.")
    kv_memory: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="KV cache size in GiB; 0: a share of the free memory."
    )
    tick_tokens: int = Field(
        0, ge=0, description="Prompt tokens run in one tick; decode steps come on top. 0: chosen by device."
    )
    prefix_cache: bool = Field(True, description="Reuse the KV pages of prompts that begin alike.")
    launch_ahead: Literal["auto", "on", "off"] = Field(
        "auto", description="Launch the next tick's forward before this one is read; auto: on CUDA, where it gains."
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of the decode worker; 0: one per core; fewer if others need them."
    )

    @property
    def kv_memory_bytes(self) -> int:
        return int(self.kv_memory * GIB)


class NetworkSettings(Section):
    """Network and access"""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all IPv4 addresses.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one, named in the log.")
    api_key: Secrets = Field(
        (),
        description="Keys of which a request must bear one (repeatable, or divided by commas); none: none is asked for."
        " Cached prompts are shared only among requests of one key. `ps` shows flags, not variables.",
    )
    metrics_auth: bool = Field(False, description="Ask for the key on /metrics too; /health and /ready never do.")
    allowed_hosts: Names = Field(
        (),
        description="Names that a Host header may bear (repeatable) beside localhost, addresses and names without dots;"
        ' "*": any. Checked where no key is asked for and only this machine is listened to: against DNS rebinding.',
    )
    docs: bool = Field(False, description="Serve /docs and /openapi.json.")
    max_connections: int = Field(
        4096,
        ge=1,
        description="Most open connections; one more is answered 503 and closed. Fewer where `ulimit -n` is too low.",
    )
    max_body_bytes: int = Field(8 << 20, ge=1024, le=1 << 30, description="Largest request body; above: 413.")
    max_buffered_body_bytes: int = Field(
        256 << 20,
        ge=1024,
        description="Bytes of all request bodies that are being received, beyond the first 64 KiB of each; above: 503.",
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, le=1 << 20, description="Largest request line plus headers; above: 431."
    )
    header_timeout: Seconds = Field(15.0, description="Seconds a client has to send its headers; then it is cut off.")
    body_timeout: Seconds = Field(60.0, description="Seconds a client has to send its body; then it is cut off.")
    keep_alive: Seconds = Field(30.0, description="Seconds an idle connection is kept open.")

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_buffered_body_bytes < self.max_body_bytes:
            raise ValueError("max_buffered_body_bytes must not be less than max_body_bytes")
        return self

    @property
    def api_keys(self) -> tuple[bytes, ...]:
        return tuple(key.get_secret_value().encode() for key in self.api_key)


class QueueSettings(Section):
    """Queue and deadlines"""

    allow_priority: bool = Field(
        False, description="Let requests go before others by their `priority`; else any but 0 is refused."
    )
    max_queue: int = Field(512, ge=1, description="Most rows that wait for the engine; above: 429 with Retry-After.")
    queue_timeout: Seconds = Field(
        600.0, description="Seconds a request may wait before it starts; then 503 (queue_timeout)."
    )
    request_timeout: Seconds = Field(
        3600.0, description="Seconds a request may take in all, its own `timeout` included; then 504."
    )
    drain_seconds: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds after SIGTERM in which accepted requests may finish."
    )


class LimitSettings(Section):
    """Limits of one request; a request beyond them is a 400 unless another status is named"""

    max_body_values: int = Field(1 << 20, ge=1, description="JSON values in a body, token ids and all; above: 413.")
    max_body_parts: int = Field(1 << 17, ge=1, description="Strings, lists and objects in a body; above: 413.")
    max_rows_per_prompt: int = Field(
        64, ge=1, serialization_alias="max_rows", description="Largest n, best_of and the like: rows of one prompt."
    )
    max_rows_per_request: int = Field(
        256, ge=1, serialization_alias="max_request_rows", description="Rows of all prompts of a request together."
    )
    max_messages: int = Field(2048, ge=1, description="Messages of a chat.")
    max_tools: int = Field(128, ge=0, description="Functions among the tools of a chat.")
    max_stop: int = Field(16, ge=0, description="Stop strings.")
    max_stop_chars: int = Field(256, ge=1, description="Characters of one stop string.")
    max_stop_token_ids: int = Field(1024, ge=0, description="Entries of stop_token_ids.")
    max_tokenize_tokens: int = Field(
        1 << 17, ge=1, description="Tokens of one /tokenize or /detokenize; as many as the model's context always are."
    )
    max_logprobs: int = Field(20, ge=0, description="Largest logprobs and top_logprobs.")
    max_prompt_scores: int = Field(
        1_000_000,
        ge=1,
        exclude=True,
        description="Log-probs of prompt tokens in one answer, alternatives included; of all choices.",
    )
    max_temperature: float = Field(
        10.0, ge=2, le=100, description="Highest temperature; top_n_sigma and min_p are made for more than OpenAI's 2."
    )
    max_logit_bias: int = Field(1024, ge=0, description="Entries of logit_bias.")
    max_allowed_token_ids: int = Field(8192, ge=0, description="Entries of allowed_token_ids.")
    max_cache_salt_chars: int = Field(256, ge=0, description="Characters of cache_salt.")
    max_bad_words: int = Field(256, ge=0, description="Entries of bad_words.")
    max_bad_word_chars: int = Field(256, ge=1, description="Characters of one of bad_words.")
    max_param_chars: int = Field(65536, ge=1, description="Characters of a text parameter (negative_prompt, suffix …).")
    max_regex_chars: int = Field(512, ge=1, description="Characters of cot_decoding.answer_regex.")
    max_schema_bytes: int = Field(65536, ge=2, description="Bytes of a JSON schema, without its blanks.")
    max_schema_depth: int = Field(64, ge=1, le=64, description="Objects and lists in one another in a JSON schema.")
    max_grammar_chars: int = Field(65536, ge=1, description="Characters of structured.regex, .choice and .grammar.")
    max_choices: int = Field(1024, ge=1, description="Entries of structured.choice.")
    grammar_seconds: Seconds = Field(1.0, description="Processor time that a grammar may take to compile.")
    send_timeout: Seconds = Field(30.0, description="Seconds a client may leave its answer unread; then it is cut off.")


class SupervisionSettings(Section):
    """Supervision of the decode worker"""

    stall_seconds: Seconds = Field(10.0, description="Seconds without progress after which /ready says stalled.")
    stall_kill_seconds: Seconds = Field(
        30.0, description="Seconds without progress after which the worker is replaced."
    )
    load_timeout: Seconds = Field(900.0, description="Seconds without a sign of life while the model loads.")
    worker_restarts: int = Field(5, ge=0, description="Restarts in a row after which the server gives up and exits.")
    restart_delay: Seconds = Field(0.5, description="Seconds before the first restart; doubled each time, 30 at most.")

    @model_validator(mode="after")
    def _stalls_before_it_is_killed(self) -> Self:
        if self.stall_kill_seconds < self.stall_seconds:
            raise ValueError("stall_kill_seconds must not be less than stall_seconds")
        return self


class LogSettings(Section):
    """Logs and metrics"""

    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, else JSON lines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    access_log: bool = Field(True, description="Log a line for each answered request.")
    vllm_metrics: bool = Field(True, description="Also expose the metrics under vLLM's names (vllm:...).")


SECTIONS: tuple[type[Section], ...] = (
    ModelSettings,
    EngineSettings,
    NetworkSettings,
    QueueSettings,
    LimitSettings,
    SupervisionSettings,
    LogSettings,
)
