"""Router folders from elsewhere: of object stores, and of the Hugging Face Hub and to it.

Knows names and files; knows nothing of what is in them. huggingface_hub is loaded on first use.
"""

import re
from pathlib import Path
from typing import Any

from router.certificate.promise import CERTIFICATE_FILE
from router.errors import RouterFileError
from router.folder import ACTIONS_FILE, BOOSTER_FILES, CARD_FILE, SECOND_LOOK_FILE
from router.places import NoPlace, Place, StoredPlace, as_place
from router.places.copies import local_copy


def local_folder(name_or_path: str | Place, revision: str | None) -> Path:
    """Return the folder of a router: one here, or those files of an object store or of a Hub
    repository, once downloaded.

    Raises:
        RouterFileError: there is neither.
    """
    try:
        folder = as_place(name_or_path)
        if isinstance(folder, StoredPlace):
            return local_copy(folder)
    except NoPlace as error:
        raise RouterFileError(f"router {error}") from error
    except OSError as error:
        raise RouterFileError(f"router {name_or_path} cannot be fetched: {error}") from error
    if folder.is_dir():
        return folder
    # Only a plain string "owner/name" may mean the Hub; a Path never makes a network call.
    if not isinstance(name_or_path, str) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name_or_path):
        raise RouterFileError(f"router {folder}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", *BOOSTER_FILES, CARD_FILE]
        found = snapshot_download(name_or_path, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:
        # The Hub's own errors are of these kinds (its HTTP error is an OSError).
        raise RouterFileError(
            f"router {name_or_path}: neither a folder here nor a Hub repository that can be "
            f"read ({error})"
        ) from error
    return Path(found)


def upload(
    folder: str | Path, repo_id: str, message: str, private: bool, token: str | None, api: Any
) -> str:
    """Return the address of the commit that uploaded a folder; ``api`` None makes a new one.

    Of a router that was there before nothing stays: its boosters, actions or second look would be
    taken for the new one's.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, repo_type="model", commit_message=message,
        delete_patterns=[*BOOSTER_FILES, ACTIONS_FILE, SECOND_LOOK_FILE, CERTIFICATE_FILE],
    )  # fmt: skip
    return str(commit)
