"""Every error that synckit-streams raises, in one tree.

```
SyncKitError(code, retryable, hint)
├─ ConfigError SK100            fix the program or its settings
│  ├─ ConnectorNotFound SK101   no connector for this URL scheme
│  ├─ StoreNotFound SK102       no store for this URL scheme
│  ├─ MissingDependency SK103   an extra is not installed
│  └─ FeatureUnsupported SK104  the connector or store says that it cannot do this
├─ WireError SK200              the bytes or the peer are wrong
│  ├─ FrameMalformed SK201      not one of our messages, cut off, or changed on the way
│  ├─ DotReused SK202           one key, two contents
│  ├─ TooLarge SK203            above a limit of the protocol
│  ├─ PayloadUndecodable SK204  the payload is stored, but it is not JSON
│  └─ Invalid SK205             a value that the protocol does not allow (an empty topic, NaN, 2^64, …)
├─ StoreError SK300             the local store
│  ├─ StoreBusy SK301           somebody else writes it just now (retryable)
│  ├─ StoreFull SK302           no room on the disk
│  ├─ StoreCorrupt SK303        the file is damaged, or is not ours
│  ├─ IdReused SK304            an event id given again with other content
│  ├─ StoreInUse SK305          another node has this store open
│  ├─ StoreClosed SK306         used before open or after close
│  ├─ ClockSkew SK307           this machine's clock leapt ahead
│  ├─ CauseUnknown SK308        an event names a cause that this store does not hold
│  ├─ SchemaNewer SK309         written by a newer version of this library
│  ├─ StoreUnavailable SK310    the store's server cannot be reached (retryable)
│  ├─ StoreDenied SK311         the store's server does not let us in, or not write
│  ├─ StoreMissing SK312        there is no store to read from
│  └─ LeaseLost SK313           somebody else has taken what the commit needed
├─ ConnectorError SK400         the broker or the way to it
│  ├─ Unavailable SK401         cannot be reached (retryable)
│  ├─ Timeout SK402             reached, but no answer in time (retryable)
│  ├─ Rejected SK403            the broker refused what we asked
│  └─ Unauthorised SK404        wrong or missing credentials (retryable)
└─ HandlerError SK500           the user's code raised
   ├─ ProjectionFailed SK501    a projection raised; its offset did not move
   └─ Unfit SK502               an event that the handler can never take
```

`retryable` answers one question: can the same call succeed later without anybody changing anything? `hint` says what
to do. Driver exceptions are translated in the one store or connector that uses the driver.
"""

from __future__ import annotations

from typing import ClassVar


class SyncKitError(Exception):
    """The root of the tree.

    Args:
        message: What went wrong, with the values that matter.
        hint: What the reader can do about it; "" takes the class's own hint.
    """

    code: ClassVar[str] = "SK000"
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(SyncKitError):
    """The program or its settings must change."""

    code = "SK100"


class ConnectorNotFound(ConfigError):
    """No connector is registered for the URL's scheme."""

    code = "SK101"


class StoreNotFound(ConfigError):
    """No store is registered for the URL's scheme."""

    code = "SK102"


class MissingDependency(ConfigError):
    """An optional library is not installed; the hint is the exact command."""

    code = "SK103"


class FeatureUnsupported(ConfigError):
    """The connector, the store or this release declares that it cannot do this."""

    code = "SK104"


class WireError(SyncKitError):
    """The bytes or the peer are wrong."""

    code = "SK200"


class FrameMalformed(WireError):
    """Not one of our messages, or cut off, or changed on the way."""

    code = "SK201"
    default_hint = "the raw bytes are kept in quarantine; the next exchange of digests brings the event again"


class DotReused(WireError):
    """One key was given to two events: a database was copied or restored and then written twice."""

    code = "SK202"
    default_hint = "both are kept: the least hash stays under the key, the other is issued again"


class TooLarge(WireError):
    """Above a limit of the protocol; the limits are the same on every node."""

    code = "SK203"
    default_hint = "see docs/reference/limits.md; keep what is large elsewhere, and put a reference into the event"


class PayloadUndecodable(WireError):
    """The payload is stored byte for byte, but it is not JSON."""

    code = "SK204"
    default_hint = "read Event.payload for the bytes as they are"


class Invalid(WireError):
    """A value that the protocol does not allow."""

    code = "SK205"


class StoreError(SyncKitError):
    """The local store failed; nothing of the failed call was written."""

    code = "SK300"


class StoreBusy(StoreError):
    """Somebody else holds the write lock; nothing was written."""

    code = "SK301"
    retryable = True
    default_hint = "try again; if it stays so, look for a program that keeps a write transaction open"


class StoreFull(StoreError):
    """No room left; nothing of the call was written, and what was there before is intact."""

    code = "SK302"
    default_hint = "free some space; the node goes on by itself"


class StoreCorrupt(StoreError):
    """The file is damaged, or is not a synckit-streams store."""

    code = "SK303"
    default_hint = "restore a backup under a new path, or start empty and sync: the peers hold what was sent"


class IdReused(StoreError):
    """The event id is taken by an event with other content."""

    code = "SK304"
    default_hint = "ids are idempotency keys: give a new fact a new id, or leave id out"


class StoreInUse(StoreError):
    """Another node has this store open."""

    code = "SK305"
    default_hint = "one node owns a store file: close the other one, or give this node a path of its own"


class StoreClosed(StoreError):
    """Used before `open` or after `close`."""

    code = "SK306"
    default_hint = "use it inside `async with`"


class ClockSkew(StoreError):
    """This machine's wall clock leapt far ahead of its last write."""

    code = "SK307"
    default_hint = "set the clock, or raise clock_leap_ms_max if the leap is right"


class CauseUnknown(StoreError):
    """A draft names a cause (`context` or `after`) that this store has never seen."""

    code = "SK308"
    default_hint = "take contexts and keys from events that this node has read; sync first if they are another one's"


class SchemaNewer(StoreError):
    """The store was written by a newer version of this library."""

    code = "SK309"
    default_hint = "upgrade synckit-streams"


class StoreUnavailable(StoreError):
    """The store's server cannot be reached, or the connection was lost.

    Nothing was written, unless the message says that this is not known.
    """

    code = "SK310"
    retryable = True
    default_hint = "try again; if it stays so, look whether the server runs and can be reached from here"


class StoreDenied(StoreError):
    """The store's server refuses user or password, or the user lacks a right."""

    code = "SK311"
    default_hint = "check the URL, and what the user may do"


class StoreMissing(StoreError):
    """Opened for reading only, and there is no store at this place."""

    code = "SK312"
    default_hint = "check the URL; a node makes its store when it first opens it"


class LeaseLost(StoreError):
    """Somebody else has taken the lease that a commit was to be made under; nothing was written."""

    code = "SK313"
    default_hint = "stop this work, whoever has the lease goes on with it; renew leases well before they run out"


class ConnectorError(SyncKitError):
    """The broker, or the way to it."""

    code = "SK400"


class Unavailable(ConnectorError):
    """The broker cannot be reached."""

    code = "SK401"
    retryable = True
    default_hint = "being offline is normal: what was written is safe in the store and goes out with the next sync"


class Timeout(ConnectorError):
    """The broker was reached, but made no progress in time."""

    code = "SK402"
    retryable = True
    default_hint = "try again, with a larger timeout_s on a slow line; what was not read back is sent again"


class Rejected(ConnectorError):
    """The broker refused the request."""

    code = "SK403"
    default_hint = "what was written is safe in the store: change what the broker objects to, and sync again"


class Unauthorised(ConnectorError):
    """Wrong or missing credentials; retried, since they can be put right on the broker's side."""

    code = "SK404"
    retryable = True
    default_hint = "check the user, password, token or certificate in the connector's URL or options"


class HandlerError(SyncKitError):
    """The user's code raised; the cause is chained."""

    code = "SK500"
    default_hint = "the original exception is the __cause__ of this one"


class ProjectionFailed(HandlerError):
    """A projection raised; its offset did not move and nothing it wrote was kept."""

    code = "SK501"
    default_hint = "its offset has not moved: put it right, and it goes on from there"


class Unfit(HandlerError):
    """An event that the handler can never take, however often it is tried: it does not fit the model, say."""

    code = "SK502"
    default_hint = "it goes to the dead-letter topic at once; `synckit dlq redrive` puts it back when the code takes it"
