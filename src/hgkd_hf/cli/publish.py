"""Publish the student or the fine-tuned model of a finished run, or a teacher's cache as a dataset.

    hgkd publish runs/mine --repo_id user/name --dry_run     # shows what would be pushed
    hgkd publish runs/mine --repo_id user/name --private --license apache-2.0

One commit holds the stock checkpoint, its image processor, the whole student in sparse_unet/, the card, pictures,
recipe and metrics. A README that was edited on the Hub or in the folder keeps its text. The same command
resumes a push that failed.
"""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.run_files import BEST_FOLDER, MODEL_FOLDER, STUDENT_FOLDER
from .errors import run_script
from .output import hush, log_to, show
from .parser import plain_parser


def main(arguments: list[str] | None = None) -> None:
    parser = plain_parser("publish", __doc__)
    parser.add_argument("run", type=Path, help="Folder of the run, or of the cache.")
    parser.add_argument("--repo_id", required=True, help="user/name, or name for one's own.")
    parser.add_argument("--best", action="store_true", help="The best student by kNN, instead of the last.")
    parser.add_argument("--license", help="E.g. apache-2.0; needed where teacher and data do not decide it.")
    parser.add_argument("--license_name", help="Of the licence `other`.")
    parser.add_argument("--license_link", help="Of the licence `other`.")
    parser.add_argument("--private", action="store_true", default=None, help="Create it private.")
    parser.add_argument("--gated", choices=("auto", "manual"), help="Readers have to ask.")
    parser.add_argument("--revision", help="Branch; created if there is none.")
    parser.add_argument("--create_pr", action="store_true", help="Propose the commit as a pull request.")
    parser.add_argument("--tag", help="Git tag for the commit, e.g. v1.0.")
    parser.add_argument("--overwrite", action="store_true", help="Push over another model that the repository holds.")
    parser.add_argument("--message", help="Title of the commit.")
    parser.add_argument("--dry_run", action="store_true", help="Show what would be pushed, and push nothing.")
    args = parser.parse_args(arguments)
    from ..hub import License, PushOptions, push_student  # here, after --help is answered
    from ..hub.cache_card import preview_cache, push_cache
    from ..hub.student_push import preview_student
    from ..teachers.cache.info import INFO_FILE

    hush()
    license = License(args.license, args.license_name, args.license_link) if args.license else None
    if args.license == "other" and not (args.license_name and args.license_link):
        raise ValueError("--license other needs --license_name and --license_link.")
    message = args.message or PushOptions.message
    options = PushOptions(args.private, args.gated, args.revision, args.create_pr, args.tag, args.overwrite, message)
    if (args.run / INFO_FILE).is_file():
        push, preview, folder = push_cache, preview_cache, args.run
    else:
        student, model = args.run / (BEST_FOLDER if args.best else STUDENT_FOLDER), args.run / MODEL_FOLDER
        push, preview, folder = push_student, preview_student, model if model.is_dir() else student
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}: give the folder of a finished run, or of a teacher's cache.")
    if args.dry_run:
        show(preview(folder, args.repo_id, options, license))
        return
    if folder != args.run:  # else the log would lie among what is published
        log_to(args.run)
    commit = push(folder, args.repo_id, options, license)
    show(f"published: {commit.pr_url or commit.commit_url}")


if __name__ == "__main__":
    run_script(main)
