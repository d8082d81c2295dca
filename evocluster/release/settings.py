"""Settings of the online half, section `online:` of a config. Every number of its rules is a default here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from evocluster.records import Record

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Metric(Record):
    """Something that feedback may say of a request or an episode."""

    type: Literal["bool", "float", "text"] = "bool"
    direction: Literal["up", "down"] = "up"
    low: float = 0.0
    high: float = 1.0
    """Of a float: values outside are refused; the reward is the place between."""
    window_s: Positive = 3600.0
    """Reward window: only exposures older than this count; what is missing then stays missing."""
    reward: bool = False
    """The bandit is rewarded by it; the first metric that says so, else `quality`."""


class Bandit(Record):
    """Thompson sampling over the arms of an experiment."""

    discount: Share = 0.998
    """Per observation, toward the prior."""
    floor: Share = 0.02
    """Of traffic, each arm."""
    start: Share = 0.2
    """Share of the challengers together until they are known."""
    ramp: tuple[Share, ...] = (0.35, 0.5, 1.0)
    """What it may be after `matured` rewards and `hours`, a step an epoch."""
    matured: Count = 100
    hours: AtLeastZero = 24.0
    weigh_after: Count = 30
    """Rewards from which on an observation weighs as much as their variance says."""
    most_weight: Positive = 8.0
    prior_mass: Positive = 10.0
    epoch_s: Positive = 300.0
    """Weights are published as often, or after `epoch_rewards`."""
    epoch_rewards: Count = 100


class Breaker(Record):
    """When a candidate is rolled back."""

    window_s: Positive = 3600.0
    """Sliding, in buckets of a minute; back to the last `least` requests where it holds fewer, at most a day."""
    least: Count = 20
    failures: Count = 5
    ratio: Positive = 2.0
    confidence: Share = 0.99
    """Opens at P(p_candidate > ratio p_baseline) >= confidence."""
    history_days: Positive = 7.0
    history_mass: Positive = 2000.0
    """Most that the history of the baseline counts for, in requests."""
    baseline_floor: Share = 0.005
    fast: tuple[int, int] = (10, 12)
    """So many hard failures of the last so many requests open at once."""
    slow_ratio: Positive = 2.0
    """A call is slow above this times the control's p95."""
    near: Share = 0.98
    """What is at least so similar to barred content is barred too."""


class Shadow(Record):
    """The candidate beside production: same inputs, answers never served."""

    hours: AtLeastZero = 24.0
    most_hours: Positive = 72.0
    pairs: Count = 100
    budget: Share = 0.1
    """Of what the deployment spends, in US dollars; where nothing has a price, of its requests."""
    concurrency: Count = 4
    rate: Share = 1.0
    """Share of the requests that are paired at most."""
    pipelines: bool = False
    """The task's executor changes nothing outside but through `online.effects.effect`, so that it may be shadowed."""


class Judge(Record):
    """Who compares shadow with production."""

    kind: Literal["reference", "model"] = "reference"
    """reference: the task's own scorers, against the answer that feedback says is right; model: a judge."""
    scorer: str | None = None
    """With model: the name of a scorer of kind `judge` of the task; its rubric file and model never evolve."""
    passes: Share = 0.6
    probe_at: str = "02:00"
    """Nightly, UTC: empty and degenerate answers must fail; while they pass, evolution is frozen."""
    probe_below: Share = 0.2


class Promotion(Record):
    """When a candidate takes the place of what serves."""

    alpha: Share = 0.05
    pairs: Count = 50
    hours: AtLeastZero = 24.0
    failure_margin: Share = 0.01
    latency_margin: Positive = 0.15
    """Of the p95, relative."""
    cost_margin: Positive = 0.10
    format_margin: Share = 0.01
    intent_margin: Share = 0.05
    """The worst intent with at least `intent_least` pairs may lose so much quality."""
    intent_least: Count = 30
    split_p: Share = 0.001
    """Traffic was not split as planned below this p of the chi-square test."""
    futile: Share = 0.02
    """Futile once the lift is surely below this."""
    live: Share = 0.2
    watch_hours: AtLeastZero = 24.0
    holdout: Share = 0.05
    holdout_days: AtLeastZero = 7.0
    live_hours: AtLeastZero = 24.0
    """On `live` of the traffic before all of it."""


class Drift(Record):
    """When accuracy is said to have gone down, per intent and model."""

    below: Share = 0.8
    warn: Count = 20
    windows: tuple[Count, ...] = (20, 50, 100)
    confidence: Share = 0.999
    """Alarm at P(accuracy < below) >= confidence over a window."""
    adwin: Share = 0.05
    """ADWIN's delta, shared over the streams."""
    cooldown_days: AtLeastZero = 7.0
    """No evolution of a layer that changed within."""


class Recording(Record):
    """What is kept of live requests."""

    bodies: bool = True
    """Keep inputs and outputs, redacted; without them nothing can be evolved or judged."""
    batch: Count = 100
    linger_ms: Positive = 100.0
    queue: Count = 10_000
    """Records that wait to be written; more go to a journal on this machine's disk."""
    body_days: Positive = 30.0
    metadata_days: Positive = 400.0
    seal_at: str = "00:30"
    """Daily, UTC: what is older than a day goes to Parquet."""


class Gateway(Record):
    """The endpoint that callers see."""

    body_limit: Count = 2**20
    """Bytes of a request."""
    concurrency: Count = 256
    queue: Count = 512
    """Requests that wait for a place; more are answered 429 with Retry-After."""
    header_timeout_s: Positive = 10.0
    poll_s: Positive = 1.0
    preload: Count = 5
    """Snapshots kept ready, the last ones."""


class Evolution(Record):
    """How candidates are made from recorded traffic."""

    limit: Count = 1000
    """Exchanges that are drawn from, at most."""
    quality: Share = 0.8
    """Of those that count as right."""
    least: Count = 40
    """Examples, fewer are not enough to evolve on."""
    calls: Count = 600
    """Budget of one evolution."""
    usd: Positive | None = None
    layers: tuple[Literal["prompt", "memory", "strategy"], ...] = ("prompt", "memory", "strategy")
    notes_model: str | None = None
    """Name of the model that takes notes from traffic for the memory; None: they are made of corrections alone."""
    replay: Count = 30
    """Recent successes that a candidate is held against before it goes into shadow."""
    regress: Share = 0.05
    """Share of them that it may break."""


class Schedule(Record):
    """When the daemon works: cron expressions, UTC."""

    analyze: str = "0 3 * * *"
    evolve: str = "0 4 */3 * *"
    promote: str = "*/5 * * * *"
    probe: str = "0 2 * * *"
    seal: str = "30 0 * * *"


class Rule(Record):
    """A rule that names the intent of a question."""

    intent: str
    pattern: str
    """Regular expression, searched in the question's text."""


class Intent(Record):
    """How the intent of a question is known, where the caller does not say it (`metadata.intent`)."""

    rules: tuple[Rule, ...] = ()
    """The first that is found says it."""
    classifier: bool = False
    """Else a small classifier trained on recorded traffic whose intent is known."""
    least: Count = 50
    """Labelled questions it takes to train one."""
    confidence: Share = 0.5
    """Below it the intent is unknown: ''."""


class Notify(Record):
    """Who is told of promotions, rollbacks, alarms."""

    webhook_env: str | None = None
    """Name of the environment variable that holds the URL; the log is told always."""
    timeout_s: Positive = 5.0


class Online(Record):
    """How a deployment of this config is served, watched, improved and rolled back."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    metrics: dict[str, Metric] = Field(
        default_factory=lambda: {
            "quality": Metric(type="float", reward=True),
            "correct": Metric(type="bool", reward=True),
            "accepted": Metric(type="bool"),
            "correction": Metric(type="text"),
        }
    )
    """What feedback may say. `correct` (the answer was right) and `correction` (the right answer) are known by name."""
    bandit: Bandit = Bandit()
    breaker: Breaker = Breaker()
    shadow: Shadow = Shadow()
    judge: Judge = Judge()
    promotion: Promotion = Promotion()
    drift: Drift = Drift()
    recording: Recording = Recording()
    gateway: Gateway = Gateway()
    evolution: Evolution = Evolution()
    schedule: Schedule = Schedule()
    intent: Intent = Intent()
    notify: Notify = Notify()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.breaker.fast[0] > self.breaker.fast[1] or min(self.breaker.fast) < 1:
            raise ValueError(f"breaker.fast {list(self.breaker.fast)!r}: so many OF so many, e.g. [10, 12]")
        for name, metric in self.metrics.items():
            if metric.type == "text" and metric.reward:
                raise ValueError(f"metrics.{name}: a text is no reward; set reward: false, or type: bool or float")
            if metric.low >= metric.high:
                raise ValueError(f"metrics.{name}: low {metric.low!r} must be below high {metric.high!r}")
        if self.judge.kind == "model" and self.judge.scorer is None:
            raise ValueError("judge.kind is 'model' and judge.scorer is missing; name a scorer of kind `judge`")
        return self
