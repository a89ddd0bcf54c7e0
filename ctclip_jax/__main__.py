"""Chest CT and reports: training, evaluation, prediction and search with CT-CLIP.

ctclip predict scan.nii.gz --model=EXPORT     as python -m ctclip_jax.predict ...
ctclip predict --help                         its flags
eval "$(ctclip --completion)"                 in ~/.bashrc or ~/.zshrc: completes all of these
"""

import difflib
import runpy
import sys
from collections.abc import Mapping

from data_pipelines import command_line
from data_pipelines.command_line import Program

# Values are files, which both shells complete as words of their own: --model EXPORT.
COMPLETION = """\
[ -z "$ZSH_VERSION" ] || {{ autoload -Uz compinit bashcompinit && compinit && bashcompinit; }}
_ctclip() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    case "$COMP_CWORD ${{COMP_WORDS[1]}} $word" in
    "1 "*) words="{names} --help" ;;
{flags}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _ctclip ctclip"""


def completion(programs: Mapping[str, Program]) -> str:
    """A script for bash and zsh."""
    flags = [
        f'    *" {name} -"*) words="{" ".join(f"--{flag}" for flag in program.flags)} --help" ;;'
        for name, program in programs.items()
    ]
    return COMPLETION.format(names=" ".join(programs), flags="\n".join(flags))


def main() -> None:
    """Runs a program as `python -m` does."""
    programs = command_line.programs()
    match sys.argv[1:]:
        case [] | ["--help" | "-h"]:
            rows = [f"  {name:17} {program.summary}" for name, program in programs.items()]
            print("\n".join([__doc__, *rows]))
        case ["--completion"]:
            print(completion(programs))
        case [name, *arguments] if name in programs:
            sys.argv = [name, *arguments]
            runpy.run_module(programs[name].module, run_name="__main__", alter_sys=True)
        case [name, *_]:
            near = difflib.get_close_matches(name, programs, n=1)
            hint = f"did you mean {near[0]}?" if near else "ctclip --help lists all"
            print(f"error: {name}: unknown program; {hint}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
