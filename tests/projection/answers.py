"""What the queries of docs/queries.md must answer to the story, worked out by hand from what `story.py` tells."""

from __future__ import annotations

from datetime import UTC, datetime

Row = tuple[object, ...]

#: Questions whose answers hold times, which a real broker has of its own.
TIMED = (
    "Where did the time of each run go?",
    "Where did the time of each epoch go?",
    "Which epochs waited longest?",
    "How long do kernels take to come?",
    "What waits at all?",
)


def _at(minute: int, second: int, microsecond: int) -> datetime:
    return datetime(2023, 11, 14, 22, minute, second, microsecond, tzinfo=UTC)


ANSWERS: dict[str, list[Row]] = {
    "Which grafts helped, and by how much?": [
        ("run-helped", "digits", "BP003", "FOSSILIZED", True, 1.0, 0.75, 0.25, True),
        ("run-spirals", "spirals", "BP001", "TRAINING", False, 0.5, 0.375, 0.125, True),
        ("run-hurt", "digits", "BP003", "CULLED", False, 1.0, 1.5, -0.5, False),
    ],
    "Which blueprint works on which task?": [
        ("spirals", "BP001", 1, 0, 0, 0, 1, 1, 0, 0.125, None, 0.125, 0.125),
        ("digits", "BP003", 2, 2, 1, 1, 2, 1, 1, -0.125, 0.5303300858899106, -0.5, 0.25),
    ],
    "Which grafts made it worse?": [
        ("run-hurt", "BP003", "CULLED", -0.5, "gate:G4_SYSTEM_IMPACT"),
    ],
    "What did the seeds of a run go through?": [
        ("hidden.1", 1, 1, "GERMINATED", "TRAINING", 1, "command", ["G1_GRADIENT_HEALTH"]),
        ("hidden.1", 2, 2, "TRAINING", "BLENDING", 1, "command", ["G1_GRADIENT_HEALTH"]),
        ("hidden.1", 3, 3, "BLENDING", "CULLED", None, "gate:G4_SYSTEM_IMPACT", ["G1_GRADIENT_HEALTH"]),
    ],
    "Where does each seed stand?": [
        ("run-helped", "hidden.1", "hidden", "BP003", "FOSSILIZED", 3),
        ("run-hurt", "hidden.1", "hidden", "BP003", "CULLED", 3),
        ("run-spirals", "hidden.1", "hidden", "BP001", "TRAINING", 1),
    ],
    "Which gates were measured?": [
        ("run-helped", 2, "G2_STABILITY", True, 2),
        ("run-helped", 3, "G4_SYSTEM_IMPACT", True, 2),
    ],
    "What did one decision turn out to be worth?": [(2, "START_GRAFTING", "SUCCESS", 0.5, 0.25)],
    "Which runs are under way?": [("run-undecided", "running")],
    "What is a metric right now?": [("oona", "oona.queue_depth_max", 3.0, "records")],
    "What became of a record that was set aside?": [
        (5, "BAD_SIGNATURE", "set_aside", False, None),
        (6, "UNSIGNED", "discarded", True, "a test of ours"),
    ],
    "Which gates failed, and on which figure?": [
        ("run-hurt", 3, "hidden.1", "BP003", "G4_SYSTEM_IMPACT", "loss_gain", -0.5, ">=", 0.01),
    ],
    "Which kernels went into quarantine, and how did they end?": [
        ("run-hurt", 3, "hidden", "BP045", "NOT_FINITE", "step 3: a number of its output is none", 3, 1.5, 10.0),
    ],
    "Which moves were refused?": [
        ("run-hurt", 3, "hidden.1", "BLENDING", "FOSSILIZED", "gate:SEED_GATE_G4_SYSTEM_IMPACT"),
    ],
    "Which policy decided what, and how did it turn out?": [
        (1, "learned", "v1", "germinate", False, "germinate", "applied", 1.0, 0.25),
        (2, "learned", "v1", "start_grafting", False, "start_grafting", "applied", 1.25, 0.25),
        (3, "learned", "v1", "fossilize", False, "fossilize", "rejected:gate:SEED_GATE_G4_SYSTEM_IMPACT", 1.5, None),
    ],
    "What does each version of a policy do?": [
        ("heuristic", "1", "fossilize", 1, 1, 0, 0, None, 0, 0),
        ("heuristic", "1", "germinate", 2, 2, 0, 2, -0.375, 2, 0),
        ("heuristic", "1", "start_grafting", 1, 1, 0, 1, -0.25, 1, 0),
        ("learned", "v1", "fossilize", 1, 0, 1, 0, None, 0, 0),
        ("learned", "v1", "germinate", 1, 1, 0, 1, 0.25, 0, 1),
        ("learned", "v1", "start_grafting", 1, 1, 0, 1, 0.25, 0, 1),
        ("noop", "1", "continue", 1, 1, 0, 0, None, 0, 0),
    ],
    "What was each decision worth?": [
        ("1", "start_grafting", 1, 1, 0, 0, 0, 0.5, 1, 0.25),
        ("v1", "start_grafting", 1, 0, 0, 1, 0, -0.5, 1, -0.5),
    ],
    "What is the reward made of?": [
        ("1", "parameter_rent", 1, -0.25),
        ("1", "validation_gain", 1, 0.75),
        ("v1", "parameter_rent", 1, -0.25),
        ("v1", "validation_gain", 1, -0.25),
    ],
    "What did each policy reach on each task?": [
        ("digits", "mlp", "heuristic", 1, 1, 0.875, None, 0.375, 9000.0),
        ("digits", "mlp", "noop", 1, 1, 0.75, None, 0.5, 9000.0),
        ("digits", "mlp", "learned", 1, 1, 0.625, None, 1.0, 9000.0),
        ("spirals", "mlp", "heuristic", 1, 1, 1.0, None, 0.25, 9000.0),
    ],
    "Which policies are there, and where does each stand?": [
        ("default", "v1", "active", "ppo_vtrace", 40, 1600, None, True, 1),
        ("default", "v2", "rejected", "ppo_vtrace", 40, 1600, "v1", False, 0),
        ("default", "v3", "rolled_back", "ppo_vtrace", 40, 1600, "v1", True, 1),
    ],
    "Which version decides now, and since what?": [
        ("default", "v1", "rolled_back", "v3", "tamiyo", "reward below the incumbent's"),
    ],
    "Where does a policy come from?": [
        ("v3", 0, "v3", True),
        ("v3", 1, "v1", True),
    ],
    "Which records was a policy trained on?": [
        ("v3", "decisions", 0, 0, 1000, 1000),
        ("v3", "field-reports", 3, 10, 610, 600),
    ],
    "Why was a policy refused?": [
        ("v2", 2, "gain_lower", -0.125, ">=", 0.0),
    ],
    "What happened to a policy, in order?": [
        ("v1", "candidate", None, None),
        ("v1", "validated", None, None),
        ("v1", "promoted", None, None),
        ("v2", "candidate", "v1", None),
        ("v2", "rejected", "v1", "gain_lower"),
        ("v3", "candidate", "v1", None),
        ("v3", "validated", "v1", None),
        ("v3", "promoted", "v1", None),
        ("v3", "rolled_back", "v1", "reward below the incumbent's"),
    ],
    "How did the version that decides now do in its runs?": [
        ("v1", "run-hurt", 3, 2),
    ],
    "Which runs are there?": [
        ("run-helped", "digits", "heuristic", 1, 3, "finished", 0.875, None),
        ("run-hurt", "digits", "learned", 2, 3, "finished", 0.625, None),
        ("run-plain", "digits", "noop", 1, 1, "finished", 0.75, None),
        ("run-spirals", "spirals", "heuristic", 1, 2, "finished", 1.0, None),
        ("run-undecided", "digits", "heuristic", 1, 1, "running", None, None),
        ("run-lost", "digits", "heuristic", 1, 0, "failed", None, "worker_lost"),
        ("run-waiting", "spirals", "heuristic", 1, 0, "requested", None, None),
    ],
    "Which run is the best of its task?": [
        ("digits", 1, "run-helped", "heuristic", 0.875, 0.375, 1),
        ("digits", 2, "run-plain", "noop", 0.75, 0.5, 0),
        ("digits", 3, "run-hurt", "learned", 0.625, 1.0, 0),
        ("spirals", 1, "run-spirals", "heuristic", 1.0, 0.25, 0),
    ],
    "How do two runs compare, epoch by epoch?": [
        (1, 1.0, 1.0, "germinate", "germinate"),
        (2, 0.75, 1.25, "start_grafting", "start_grafting"),
        (3, 0.5, 1.5, "fossilize", "fossilize"),
    ],
    "Which commands came too late?": [
        ("run-hurt", 2, 1, "outcome_exists"),
    ],
    "From where can a run be restored?": [
        ("run-helped", 2, "d" * 64, 4096),
    ],
    "Which runs went back?": [
        ("run-helped", 3, 2, "diverged", 0.5),
    ],
    "Which runs were held back?": [
        ("run-undecided", 1, True, 3, False, False),
    ],
    "Which seeds were tuned?": [
        ("run-hurt", 2, "hidden.1", "TRAINING", 0.5, 2, "command:fine_tune"),
    ],
    "Who worked on a run?": [
        (1, "tolaria-0", 0, 1),
        (2, "tolaria-0", 1, None),
    ],
    "Where did the time of each run go?": [
        ("run-spirals", 1, 2, 2.0, 0.5, 2.0, 10.01, 0.8334721065778518, 5005.0, 10000.0),
        ("run-hurt", 2, 3, 2.0, 1.0, 4.0, 0.03, 0.007444168734491314, 10.0, 10.0),
        ("run-lost", 1, None, 2.0, 0.5, None, None, None, None, None),
        ("run-helped", 1, 3, 2.0, 0.5, 3.0, 0.03, 0.009900990099009901, 10.0, 10.0),
        ("run-plain", 1, 1, 2.0, 0.5, 1.0, 0.01, 0.009900990099009901, 10.0, 10.0),
        ("run-undecided", 1, 1, 2.0, 0.5, 1.0, None, None, None, None),
    ],
    "Where did the time of each epoch go?": [
        (1, "germinate", 1000.0, 4.0, 1.0, 5.0, 10.0, 9.5),
        (2, "start_grafting", 1000.0, 4.0, 1.0, 5.0, 10.0, 9.5),
        (3, "fossilize", 1000.0, 4.0, 1.0, 5.0, 10.0, 9.5),
    ],
    "Which epochs waited longest?": [
        ("run-spirals", 2, "none:timeout", 10000.0),
        ("run-helped", 1, "applied", 10.0),
        ("run-helped", 2, "applied", 10.0),
    ],
    "How long do kernels take to come?": [
        ("kernel-3", "run-helped", "ready", None, 700.0),
        ("kernel-1", "run-spirals", "failed", "out of memory", 250.0),
        ("kernel-9", "run-undecided", "waiting", None, None),
    ],
    "What did the forge do?": [
        ("kernel-1", "BP001", "failed", 2, 1, "out of memory", None, None, None),
        ("kernel-3", "BP003", "finished", 1, 0, None, 450.0, "conservative", "the compiler timed out"),
    ],
    "What do the subsystems measure?": [
        ("tolaria", "tolaria.training.latency_ms", 10, 550.0, 550.0, 1000.0, 5.5),
    ],
    "How is any metric spread?": [
        ("oona", "oona.queue_depth_max", "records", 1, 3.0, 3.0, 3.0, 3.0),
        ("tolaria", "tolaria.training.latency_ms", "ms", 10, 100.0, 550.0, 1000.0, 1000.0),
        ("tolaria", "tolaria.training.loss", "1", 10, 0.1, 0.18333333333333335, 1.0, 0.1),
    ],
    "Where does the time go by spans?": [
        ("oona", "retain", 2, 0, 1.5, 750.0, 1000.0),
        ("oona", "emit", 0, 1, None, None, None),
    ],
    "What waits at all?": [
        ("kernel without answer", "kernel-9", _at(13, 25, 0)),
        ("epoch 1 without outcome", "run-undecided", _at(14, 10, 80000)),
        ("run without worker", "run-waiting", _at(14, 20, 580000)),
        ("key parked by esper.tamiyo", "run-helped", _at(14, 43, 580000)),
    ],
    "Why was it set aside?": [
        ("runs", "", "BAD_SIGNATURE", "set_aside", 1, 1),
        ("runs", "", "UNSIGNED", "discarded", 1, 1),
        ("system-state", "esper.tamiyo", "HANDLER_FAILED", "parked", 1, 1),
        ("system-state", "esper.tamiyo", "HANDLER_FAILED", "redriven", 1, 1),
        ("system-state", "esper.tamiyo", "WAITS_FOR_KEY", "waits", 2, 1),
    ],
    "Which record is it, and what was wrong?": [
        ("runs", 0, 5, "run-x", "BAD_SIGNATURE", "set_aside", 1, "detail of 5"),
        ("system-state", 0, 7, "run-helped", "HANDLER_FAILED", "parked", 3, "detail of 7"),
        ("system-state", 0, 8, "run-helped", "WAITS_FOR_KEY", "waits", 3, "detail of 8"),
        ("system-state", 0, 9, "run-helped", "WAITS_FOR_KEY", "waits", 3, "detail of 9"),
    ],
    "Which keys are blocked, and how much stands behind them?": [
        ("esper.tamiyo", "system-state", "run-helped", 7, "HANDLER_FAILED", 2),
    ],
    "Is everybody well?": [
        ("oona", "housekeeper-0", "DEGRADED", ""),
        ("oona", "tolaria-0", "HEALTHY", ""),
    ],
    "What was warned of?": [
        ("oona", "WARNING", "the backlog is long"),
    ],
    "What may be grafted?": [
        ("BP001", "linear", "SAFE", ["vector"], "allowed"),
        ("BP003", "bottleneck", "SAFE", ["vector"], "allowed"),
        ("BP022", "approved", "EXPERIMENTAL", ["vector"], "approved"),
        ("BP023", "changed", "EXPERIMENTAL", ["vector"], "approval_outdated"),
        ("BP024", "withdrawn", "EXPERIMENTAL", ["vector"], "withdrawn"),
        ("BP043", "risky", "HIGH_RISK", ["vector"], "quarantine_only"),
    ],
    "Who allowed or withdrew a blueprint, and why?": [
        ("BP022", "approved", "ada", "looked at"),
        ("BP024", "withdrawn", "grace", "it overflows"),
        ("BP043", "quarantine_only", "ada", "looked at"),
    ],
    "Which kernels are there, and what do they cost?": [
        ("kernel-3", "BP003", "vector", 64, 64, 400, 450.0, 0.25, 0.5),
    ],
    "Which kernels failed or lack something, and why?": [
        ("kernel-1", "BP001", "failed", "out of memory"),
        ("kernel-3", "BP003", "damaged", "weights: the stored bytes have another SHA-256"),
    ],
    "How were kernels compiled, and what was it worth?": [
        ("kernel-3", "aot_package", "cpu", False, "slower than 1.1x", 1.0, 2000.0, True, 1e-6),
        ("kernel-3", "inductor_cache", "cpu", True, None, 1.5, 2000.0, True, 1e-6),
    ],
    "How long does a kernel take?": [
        ("BP003", "vector", "eager.forward", "cpu", 32, 200, 0.25, 0.5),
        ("BP003", "vector", "inductor.forward", "cpu", 32, 200, 0.125, 0.25),
    ],
    "What failed around kernels, and why?": [
        ("compile", "kernel-1", "BP001", "out of memory"),
        ("integrity of weights", "kernel-3", "BP003", "the stored bytes have another SHA-256"),
        ("request", "kernel-1", "BP001", "out of memory"),
    ],
    "Which stored bytes were wrong, and which were removed?": [
        ("removed", "kernel-0", None, "unnamed", "urza", 4096),
        ("wrong", "kernel-3", "weights", "the stored bytes have another SHA-256", "urza", None),
    ],
}
