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

COMPLETION = """\
[ -z "$ZSH_VERSION" ] || {{ autoload -Uz compinit bashcompinit && compinit && bashcompinit; }}
_ctclip() {{
    local words="{names} --help"
    if [ "$COMP_CWORD" -gt 1 ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        *) words="" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
    [[ "${{COMPREPLY[0]}}" != *= ]] || compopt -o nospace 2>/dev/null
}}
complete -o default -F _ctclip ctclip"""


def completion(programs: Mapping[str, Program]) -> str:
    """A script for bash and zsh; files complete where nothing else does."""
    cases = []
    for name, program in programs.items():
        values = {flag: "" if "bool" in kind else "=" for flag, kind in program.flags.items()}
        words = " ".join(f"--{flag}{equals}" for flag, equals in values.items())
        cases.append(f'        {name}) words="{words} --help" ;;')
    return COMPLETION.format(names=" ".join(programs), cases="\n".join(cases))


def main() -> None:
    """Runs a program as `python -m` does."""
    programs = command_line.programs()
    match sys.argv[1:]:
        case [] | ["--help"]:
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
