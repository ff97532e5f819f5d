"""Where a finished dataset came from, found again: its sources by their checksums, its tokenizer, its template.

Verification and repair run partitions again, which makes sense only with the very same inputs. Names lie, so a source
is known by its size and SHA-256, wherever it is now: among the files that were named, at its name in the manifest
(counted from the working directory), or at the absolute path in run.json.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from premask.encode.files import TokenizerFiles, load_tokenizer_files
from premask.errors import PremaskError, UsageError
from premask.intake import Input, identity_with, input_of, require_unchanged
from premask.maskers import templating_of
from premask.phases import Run
from premask.read import Source, digest_file, expand, open_sources, place_of, size_of, stamp_of, suffix_of
from premask.recipe import Recipe
from premask.record import RUN, code_digest, shaping
from premask.run.local import Crew
from premask.show.progress import Progress
from premask.store.sealed import unseal


@dataclass(frozen=True, slots=True)
class Origin:
    """What a dataset was made from, as it is found now."""

    description: Mapping[str, Any]
    recipe: Recipe
    """The dataset's own, but for the place where its template is found."""
    inputs: list[Input]
    files: TokenizerFiles

    def run(self, out: Path, crew: Crew, progress: Progress) -> Run:
        """A run of the same recipe into the folder `out`."""
        identity = identity_with({**self.description, "code": code_digest()}, self.inputs)
        sizes = self.description["sizes"]
        return Run(self.recipe, self.inputs, self.files, out, crew, progress, identity, sizes)

    def require_unchanged(self) -> None:
        """DataError where a source has changed since it was found."""
        require_unchanged(self.inputs)


def find_origin(
    folder: Path,
    description: Mapping[str, Any],
    *,
    sources: Sequence[str] = (),
    tokenizer: str | None = None,
    other_versions: bool = False,
) -> Origin:
    """The inputs behind `description`, which the manifest or run.json of the dataset in `folder` holds.

    `sources` and `tokenizer` say where they are now, if not where they were. Raises UsageError that names everything
    which is not found, or not as it was; versions of libraries among them unless `other_versions` will do.
    """
    record = read_record(folder) or {}
    problems: list[str] = []
    found = _find_sources(description["sources"], sources, record.get("sources", ()), problems)
    templated = _find_templating(description, record, tokenizer, problems)
    if not other_versions:
        problems += _version_changes(description)
    if problems or templated is None:
        raise UsageError("\n".join([f"{folder}: the dataset cannot be made again from what is here:", *problems]))
    recipe, files = templated
    return Origin(description, recipe, [input_of(recipe, source) for source in found], files)


def read_record(folder: Path, name: str = RUN) -> dict[str, Any] | None:
    """What run.json holds; None where it is missing or damaged. `name` is where else it may have got."""
    try:
        record = unseal((folder / name).read_bytes())
    except (OSError, ValueError):
        return None
    return record if "description" in record else None


def _find_sources(
    wanted: Sequence[Mapping[str, Any]], given: Sequence[str], recorded: Sequence[str], problems: list[str]
) -> list[Source]:
    known: dict[str, str] = {}
    given = [str(found.place) for argument in given for found in expand(argument)]
    found: list[Source] = []
    for number, entry in enumerate(wanted):
        places = [*given, entry["name"], *recorded[number : number + 1]]
        place = next((place for place in places if _is_source(place, entry, known)), None)
        if place is None:
            problems.append(
                f"source {entry['name']}: expected the file with SHA-256 {entry['sha256'][:16]}..., found none such at "
                f"{', '.join(dict.fromkeys(places))}; say where it is now"
            )
            continue
        found += [replace(source, name=entry["name"], argument=entry["entry"]) for source in open_sources([place])]
    problems += [
        f"{place}: none of the dataset's sources, or one that has changed"
        for place in sorted(set(given))
        if not any(_is_source(place, entry, known) for entry in wanted)
    ]
    return found


def _is_source(name: str, entry: Mapping[str, Any], known: dict[str, str]) -> bool:
    """Whether a file or URL holds a source's bytes; its ending must be the same too, since it tells its kind."""
    place = place_of(name)
    if (isinstance(place, Path) and not place.is_file()) or stamp_of(place) is None:
        return False
    if size_of(place) != entry["size"] or suffix_of(name) != suffix_of(entry["name"]):
        return False
    if name not in known:
        known[name] = digest_file(place)
    return bool(known[name] == entry["sha256"])


def find_templating(
    folder: Path, description: Mapping[str, Any], tokenizer: str | None = None
) -> tuple[Recipe, TokenizerFiles]:
    """The recipe and the tokenizer of the dataset in `folder`, as they were. UsageError where they are not found."""
    problems: list[str] = []
    found = _find_templating(description, read_record(folder) or {}, tokenizer, problems)
    if found is None:
        raise UsageError(f"{folder}: {problems[0]}")
    return found


def _find_templating(
    description: Mapping[str, Any], record: Mapping[str, Any], tokenizer: str | None, problems: list[str]
) -> tuple[Recipe, TokenizerFiles] | None:
    """The recipe and the tokenizer files, where both are as they were."""
    recipe = Recipe(**description["recipe"])
    wanted = {name: description[name] for name in ("template", "tokenizer")}
    names = [tokenizer] if tokenizer else [*_named(record.get("tokenizer")), recipe.tokenizer]
    templates = [recipe.template, *_named(record.get("template"))]
    seen: list[str] = []
    for files, template in product(_loaded(names, seen), templates):
        chosen = recipe.model_copy(update={"template": template})
        try:
            if templating_of(chosen, files) == wanted:
                return chosen, files
            changed = "the chat template" if dict(files.digests) == wanted["tokenizer"] else "a file of the tokenizer"
            seen.append(f"{files.folder}: {changed} has changed")
        except PremaskError as error:
            seen.append(str(error))
    problems.append(f"tokenizer {recipe.tokenizer}: {'; '.join(dict.fromkeys(seen))}; name its folder with --tokenizer")
    return None


def _named(value: str | None) -> list[str]:
    return [value] if value else []


def _loaded(names: Iterable[str], seen: list[str]) -> Iterator[TokenizerFiles]:
    load: Callable[[str], TokenizerFiles] = load_tokenizer_files
    for name in dict.fromkeys(names):
        try:
            yield load(name)
        except PremaskError as error:
            seen.append(str(error))


def _version_changes(description: Mapping[str, Any]) -> list[str]:
    now = shaping()
    before = {name: description[name] for name in now}
    changes = [(name, str(before[name]), str(now[name])) for name in now if not isinstance(now[name], dict)]
    libraries = now["libraries"]
    changes += [(name, before["libraries"].get(name), version) for name, version in libraries.items()]
    return [
        f"{name.replace('_', ' ')}: the dataset was made with version {old}, found {new}; install {old} for this"
        for name, old, new in changes
        if old != new
    ]
