"""Name -> classifier: every bundle of the models folder, opened, checked and ready."""

import logging
from collections.abc import Iterator

from saccade.api import Plan
from saccade.bundle import find_bundles, open_bundle
from saccade.errors import BundleError, InvalidParameter, SettingsError, UnknownModel
from service.classifier import Classifier
from service.metrics import Metrics
from service.settings import Settings
from service.workers import Workers

log = logging.getLogger("saccade.registry")


class Registry:
    def __init__(self, settings: Settings, plan: Plan, workers: Workers, metrics: Metrics) -> None:
        """Loads all bundles. Raises BundleError, SettingsError; then nothing stays open."""
        self._classifiers: dict[str, dict[int, Classifier]] = {}
        try:
            for folder in find_bundles(settings.models):
                classifier = Classifier(open_bundle(folder), settings, plan, workers, metrics)
                manifest = classifier.manifest
                self._classifiers.setdefault(manifest.name, {})[manifest.version] = classifier
                log.info("%s is ready: %s", manifest.id, classifier.plan.model_dump())
            if not self._classifiers:
                raise BundleError(f"{settings.models} holds no bundle <name>/<version>/manifest.json")
            self._default = self._find_default(settings.default_model)
        except Exception:
            self.close()
            raise

    def __iter__(self) -> Iterator[Classifier]:
        return (classifier for versions in self._classifiers.values() for classifier in versions.values())

    @property
    def default(self) -> Classifier | None:
        return self._default

    def get(self, model: str | None) -> Classifier:
        """By `name` (highest version) or `name@version`; None: the default. Raises UnknownModel, InvalidParameter."""
        if model is None:
            if self._default is None:
                raise InvalidParameter(f"several models are served: give model=, one of {self._known()}")
            return self._default
        found = self._find(model)
        if found is None:
            raise UnknownModel(f"no model {model[:80]!r}; there are {self._known()}")
        return found

    def close(self) -> None:
        for classifier in self:
            classifier.close()

    def _find(self, model: str) -> Classifier | None:
        name, _, version = model.partition("@")
        versions = self._classifiers.get(name)
        if versions is None:
            return None
        if not version:
            return versions[max(versions)]
        return versions.get(int(version)) if version.isascii() and version.isdigit() and len(version) < 10 else None

    def _find_default(self, model: str | None) -> Classifier | None:
        if model is None:
            return self._find(next(iter(self._classifiers))) if len(self._classifiers) == 1 else None
        found = self._find(model)
        if found is None:
            raise SettingsError(f"SACCADE_DEFAULT_MODEL is {model!r}; there are {self._known()}")
        return found

    def _known(self) -> str:
        return ", ".join(classifier.manifest.id for classifier in self)
