"""What every store must do, as tests. A new store passes when a subclass of `StoreContract` passes.

```python
class TestMyStore(StoreContract):
    @pytest.fixture
    def media(self, tmp_path):
        return MyMedia(tmp_path)
```

`Media` says how to make a store, how to copy what it has written, and how to lose it as a crash does. A store takes a
`probe`, called with "commit" just before each commit and with "committed" just after it: the contract raises from it.
With `read_only=True` it is a store to look into, beside the one that its node has.

Each test ends with an audit that reads the whole log and computes from it, with loops and sets, everything that the
store answers from its indexes.
"""

from __future__ import annotations

from synckit_streams.testing.store_contract.effects import Effects
from synckit_streams.testing.store_contract.history import Histories
from synckit_streams.testing.store_contract.kit import NOW_MS, Media, Probe, Writer, arrivals, audit, draft, opening
from synckit_streams.testing.store_contract.leasing import Leasing
from synckit_streams.testing.store_contract.living import Living
from synckit_streams.testing.store_contract.looking import Looking
from synckit_streams.testing.store_contract.moving import Moving
from synckit_streams.testing.store_contract.reading import Reading
from synckit_streams.testing.store_contract.receiving import Receiving
from synckit_streams.testing.store_contract.writing import Writing

__all__ = ["NOW_MS", "Media", "Probe", "StoreContract", "Writer", "arrivals", "audit", "draft", "opening"]


class StoreContract(Writing, Receiving, Reading, Looking, Moving, Leasing, Effects, Living, Histories):
    """See the module's text. The tests are coroutines: run them with pytest-asyncio's `asyncio_mode = "auto"`, or mark
    the subclass with `pytest.mark.asyncio`.

    How many random histories it compares with the model, and how long they are, say `histories` and `steps`.
    """
