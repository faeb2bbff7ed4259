"""Every error this package raises on purpose: each names the thing, the value and the way out.

One root; each child also inherits the standard error it stands for. All are built from one message, so that they stay
picklable when Ray carries them between processes. `exit_code` is 2 for a mistake the user can mend, 1 otherwise.
"""


class TokenSqueezeError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 2


class SettingsError(TokenSqueezeError, ValueError):
    """The settings are wrong; the message lists every mistake with its key."""


class ProblemsError(TokenSqueezeError, ValueError):
    """A problem file is missing or malformed, or a problem can't be used with this model."""


class ModelError(TokenSqueezeError, ValueError):
    """A model directory lacks something: weights, tokenizer, chat template."""


class TableError(TokenSqueezeError, ValueError):
    """A table on disk is not what its schema says."""


class NoPairsError(TokenSqueezeError, ValueError):
    """No trace or pair is left to train on."""


class StorageError(TokenSqueezeError, OSError):
    """The disk is full, or a path can't be written or read."""


class MissingPackageError(TokenSqueezeError, ImportError):
    """An optional package is needed and not installed; the message has the install command."""


class EngineError(TokenSqueezeError, RuntimeError):
    """An engine could not be started or failed on all of its work."""

    exit_code = 1


class TrainingError(TokenSqueezeError, RuntimeError):
    """Training can't go on: non-finite loss, collapsed accuracy, incomplete reference scores."""

    exit_code = 1


class StageError(TokenSqueezeError, RuntimeError):
    """A stage failed; the message names the stage, the shard and the cause."""

    exit_code = 1
