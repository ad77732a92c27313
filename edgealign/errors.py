"""Every error that edgealign raises on purpose, and the exit code that the command line gives it.

    EdgealignError          1   anything else that went wrong inside
    ├── InvalidInput        2   an argument, array or label that cannot be used (also a ValueError)
    │   └── MissingExtra    2   the command needs packages that are not installed
    ├── DeviceUnavailable   2   a device that was asked for and is not there
    ├── ArtifactError       3   a bundle or a store that cannot be used
    │   ├── BundleUnreadable
    │   ├── BundleMismatch      a store that was made with another encoder
    │   ├── StoreUnreadable
    │   └── StoreUnwritable     read-only folder, full disk
    ├── InputUnreadable     4   no file of those named could be read
    │   ├── AudioUnreadable
    │   ├── ImageUnreadable
    │   ├── ModelUnreadable     an ONNX model that cannot be imported
    │   └── AnnotationUnreadable   a table of annotations
    ├── SomeInputsFailed    5   the work is done, but not for every file
    └── EnrollmentRefused   6   no clip or text was good enough to learn from

Exit code 0 is success (unknown is an answer), 130 is an interrupt. A message says what was found, what was expected
and what to do next.
"""

from __future__ import annotations

EXIT_UNKNOWN = 1  # `classify --fail-on-unknown` found an unknown
EXIT_INTERRUPTED = 130


class EdgealignError(Exception):
    exit_code = 1


class InvalidInput(EdgealignError, ValueError):
    exit_code = 2


class MissingExtra(InvalidInput):
    pass


class DeviceUnavailable(EdgealignError):
    exit_code = 2


class ArtifactError(EdgealignError):
    exit_code = 3


class BundleUnreadable(ArtifactError):
    pass


class BundleMismatch(ArtifactError):
    pass


class StoreUnreadable(ArtifactError):
    pass


class StoreUnwritable(ArtifactError):
    pass


class InputUnreadable(EdgealignError):
    exit_code = 4


class AudioUnreadable(InputUnreadable):
    pass


class ImageUnreadable(InputUnreadable):
    pass


class ModelUnreadable(InputUnreadable):
    pass


class AnnotationUnreadable(InputUnreadable):
    pass


class SomeInputsFailed(EdgealignError):
    exit_code = 5


class EnrollmentRefused(EdgealignError):
    exit_code = 6
