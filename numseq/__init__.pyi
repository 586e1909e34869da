from os import PathLike
from typing import List, NamedTuple, Optional, Sequence, Union

class FetchError(Exception):
    status: int
    resumable: bool
    def __init__(self, message: str, resumable: bool = ...) -> None: ...

class ChecksumMismatch(FetchError): ...
class UsageError(FetchError): ...
class Refused(FetchError): ...
class ConnectionLost(FetchError):
    cause: Optional[OSError]
    def __init__(self, message: str, resumable: bool = ..., cause: Optional[OSError] = ...) -> None: ...

class ProtocolBroken(FetchError): ...

class Result(NamedTuple):
    numbers: List[int]
    sum: int
    checksum: str
    client_id: str
    @property
    def state_error(self) -> Optional[str]: ...

def fetch(
    n: int,
    port: int,
    *,
    host: Union[str, Sequence[str]] = ...,
    batch_size: int = ...,
    client_id: Optional[str] = ...,
    state: Optional[Union[str, PathLike[str]]] = ...,
    window: int = ...,
    timeout: float = ...,
    retry: int = ...,
    max_time: Optional[float] = ...,
) -> Result: ...
def resume(
    port: int,
    *,
    state: Union[str, PathLike[str]] = ...,
    host: Union[str, Sequence[str]] = ...,
    window: int = ...,
    timeout: float = ...,
    retry: int = ...,
    max_time: Optional[float] = ...,
) -> Result: ...

__version__: str
__all__: List[str]
