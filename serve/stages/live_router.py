"""The router in force, and its exchange while requests are running.

Knows folders, the registry's last word and one reference; knows nothing of requests. A router is
loaded and tried out completely before the reference moves, and a bad one changes nothing but a
gauge and a line in the log. There is one source: a registry that names a router overrules one
that was chosen otherwise, and says so for as long as both are there. Once all its routers are
rolled back, what was chosen, or served at the start, is in force again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from router.errors import RouterFileError
from router.places import Place, read_all
from router.registry import Entry, Restriction, entry_path, later_entry, router_folder
from router.router import Router
from serve.arms.on_trial import OnTrial
from serve.drift.restriction import in_words
from serve.errors import ServeSetupError
from serve.metrics import Metrics

LOG = logging.getLogger(__name__)
RETRY_POLLS = 30  # a router that could not be loaded is tried again after so many looks


class LiveRouter:
    """Holds the router; `follow` keeps it equal to the registry's.

    Args:
        check: raises ValueError for a router that does not fit the model.
        metrics: where swaps are counted.
        registry: what is followed, a folder or in an object store; or None.
        poll_s: seconds between looks.
        model_hash: of the model that is served, asked for when a router holds a certificate.
        began: told of every router that comes into force, and of its folder.
    """

    def __init__(
        self,
        check: Callable[[Router], None],
        metrics: Metrics,
        registry: Place | None = None,
        poll_s: float = 1.0,
        model_hash: Callable[[], str] | None = None,
        began: Callable[[Router | None, Place | None], None] = lambda router, folder: None,
    ) -> None:
        self._check, self._metrics = check, metrics
        self._model_hash, self._began = model_hash, began
        self._registry, self._poll_s = registry, poll_s
        self.current: Router | None = None
        self.restriction: Restriction | None = None  # that it is held to
        self.ok = True
        self._wanted: Place | None = None  # in force, or tried in vain
        self._serves: Place | None = None  # what is in force
        self._word: Entry | None = None  # the registry's last, as far as it could be read
        self._heard = 0  # the number of the registry's last word
        self._restricted: Restriction | None = None  # by that word
        self._instead = False  # of the registry's, another one was asked for at the start
        self._first: Path | None = None  # to go back to when the registry's are rolled back
        self._chosen: Path | None = None
        self._complaint = self._overruled = self._unread = ""
        self._polls_since_failure = 0
        self.trial = OnTrial(self._load, metrics, registry)
        self._swapping = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="m3-registry", daemon=True)

    @property
    def version(self) -> str:
        """Return the short hash of the router in force, "" without one."""
        router = self.current
        return "" if router is None else router.version

    @property
    def certificate(self) -> str:
        """Return in a sentence what is promised of the router in force, or why nothing is."""
        if self.current is None:
            return "no router: every picture is read at the finest scale, which loses nothing"
        if self.restriction is not None:
            return f"nothing while the router is restricted to {in_words(self.restriction)}"
        found = self.current.held.certificate
        if found is None:
            return self.current.held.refused
        return f"{found.loss} of at most {found.bounds}, each {1 - found.delta:.4g} sure"

    def start(self, explicit: Path | None, default: Path | None) -> None:
        """Load the first router: explicit, else the registry's, else the default, else none.

        Raises:
            ServeSetupError: the explicit one cannot be used.
        """
        entry = self._last_word()
        promoted, self._heard = self._promoted(entry), 0 if entry is None else entry.seq
        if entry is not None:
            self.trial.follow(entry)
        shipped = default if default is not None and default.is_dir() else None
        self._first = shipped if explicit is None else explicit
        # Only a later promotion replaces what was asked for.
        self._wanted = self._first if promoted is None else promoted
        self._restricted = None if entry is None else entry.restriction
        if self._restricted is not None and promoted is None and entry is not None and entry.to:
            self._restricted = replace(self._restricted, price=None)  # what stands in has others
        self._instead = explicit is not None and promoted not in (None, explicit)
        if explicit is not None:
            try:
                self.current, self._serves = self._load(explicit), explicit
            except (OSError, ValueError) as error:
                raise ServeSetupError(f"router {explicit} cannot be used: {error}") from error
        elif promoted is not None:
            self.swap_to(promoted)
        if self.current is None and shipped is not None:
            try:
                self.current, self._serves = self._load(shipped), shipped
            except (OSError, ValueError) as error:
                LOG.error("the shipped router %s cannot be used: %s", shipped, error)
        self._hold(self._serves)
        self._began(self.current, self._serves)
        if self.current is None:
            LOG.warning("no router: every picture is read at the finest scale allowed")
        if self._registry is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop following the registry."""
        self._stop.set()

    def choose(self, folder: Path | None) -> bool:
        """Return whether the router chosen for this deployment is in force; None: none is chosen.

        Where the registry names one, nothing changes but that the contradiction is told.
        """
        self._chosen = folder
        if folder is not None and self._promoted(self._last_word()) is not None:
            self._overrule(folder)
            return False
        self._agreed()
        return folder is None or self.swap_to(folder)

    def swap_to(self, folder: Place | None) -> bool:
        """Return whether the router in ``folder`` is in force now; if not, nothing has changed.

        None: no router.
        """
        with self._swapping:
            self._wanted, self._instead = folder, False
            try:
                loaded = None if folder is None else self._load(folder)
            except Exception as error:  # whatever is wrong with a file must not end the service
                self._failed(f"router {folder} is not taken over: {error}")
                if self._restricted is not None:  # else what was held stays so
                    self._hold(self._serves)
                return False
            before = self.version
            # Last of all the router itself: who sees the new one must not read the old complaint.
            self._complaint, self.ok, self._polls_since_failure = "", not self._overruled, 0
            if self._restricted is not None:  # before it decides anything
                self._hold(folder)
            self.current, self._serves = loaded, folder
            self._hold(folder)
            self._began(loaded, folder)
            self._metrics.count("m3_router_swaps", outcome="ok")
            self._metrics.gauge("m3_router_stale", int(not self.ok))
            LOG.info("router %s replaces %s", self.version or "none", before or "none")
            return True

    def _hold(self, folder: Place | None) -> None:
        """Hold what is in force to what the registry says; a price is of the router it names."""
        told = None if self._instead else self._restricted
        if told is not None and folder != self._wanted:
            told = replace(told, price=None)
        if told != self.restriction:
            now = "restricted no more" if told is None else f"restricted to {in_words(told)}"
            LOG.warning("router %s is %s", self.version or "none", now)
        self.restriction = told
        self._metrics.gauge("m3_router_restricted", int(told is not None))

    def _load(self, folder: Place) -> Router:
        router = Router.from_pretrained(folder)
        self._check(router)
        if router.held.certificate is not None and self._model_hash is not None:
            router = router.for_model(self._model_hash())
            if router.held.certificate is None:
                LOG.warning("router %s: %s", router.version, router.held.refused)
        return router

    def _last_word(self) -> Entry | None:
        if self._registry is None:
            return None
        try:
            entry = self._word = later_entry(self._registry, self._word)
        except RouterFileError as error:
            self._unread = str(error)
            self._failed(self._unread)
            return None
        # It can be read again and names nothing; one that it names is loaded anew by `_poll`.
        if (entry is None or entry.to is None) and self._unread == self._complaint != "":
            self._complaint, self.ok = "", not self._overruled
            self._metrics.gauge("m3_router_stale", int(not self.ok))
        self._unread = ""
        return entry

    def _promoted(self, entry: Entry | None) -> Place | None:
        """Return the folder that an entry of the registry names; None where it is not there."""
        try:
            return None if self._registry is None else router_folder(self._registry, entry)
        except RouterFileError as error:
            self._unread = str(error)
            self._failed(self._unread)
            return None

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_s):
            entry = self._last_word()
            wanted = self._promoted(entry)
            if entry is not None:
                self.trial.follow(entry)
            if entry is None or (wanted is None and entry.to is not None):
                continue
            if wanted is None:  # all is rolled back
                self._agreed()
                wanted = self._first if self._chosen is None else self._chosen
            elif self._chosen is not None:  # the promotion came later
                self._overrule(self._chosen)
            anew = entry.seq != self._heard
            if anew:
                self._restricted = entry.restriction
            # Rolled back and promoted again between two looks: a later word about the same one.
            later, self._heard = self._is_moved(entry), entry.seq
            if wanted != self._wanted or (later and wanted != self._serves):
                self.swap_to(wanted)
            elif anew:
                self._hold(self._serves)
            elif self._complaint:
                self._polls_since_failure += 1
                if self._polls_since_failure % RETRY_POLLS == 0:
                    self.swap_to(wanted)

    def _is_moved(self, entry: Entry) -> bool:
        """Return whether something was put in force since the last look, the same or another."""
        if self._registry is None or entry.seq == self._heard:
            return False
        try:
            between = range(self._heard + 1, entry.seq)
            paths = [entry_path(self._registry, seq) for seq in between]
            said = [*(Entry.of(path, content) for path, content in read_all(paths)), entry]
        except RouterFileError:  # the last word is all that must be read
            said = [entry]
        return any(each.action in ("promote", "rollback") for each in said)

    def _agreed(self) -> None:
        if self._overruled:
            self._overruled, self.ok = "", not self._complaint
            self._metrics.gauge("m3_router_stale", int(not self.ok))

    def _overrule(self, chosen: Path) -> None:
        told = (
            f"two sources of the router: user_config names {chosen}, and the registry "
            f"{self._registry} names one, which counts; set registry: null, or take "
            "user_config away"
        )
        if told != self._overruled:
            LOG.error("%s", told)
            self._metrics.count("m3_router_swaps", outcome="failed")
        self._overruled, self.ok = told, False
        self._metrics.gauge("m3_router_stale", 1)

    def _failed(self, complaint: str) -> None:
        if complaint != self._complaint:  # once, not once a second
            LOG.error("%s; the router in force stays %s", complaint, self.version or "none")
            self._metrics.count("m3_router_swaps", outcome="failed")
        self._complaint, self.ok = complaint, False
        self._metrics.gauge("m3_router_stale", 1)
