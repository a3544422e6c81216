"""Completion in the shell: `eval "$(python -m experiments.run -sc install=bash)"`.

Hydra's own script completes `python app.py` only. This one asks Hydra's completion for the words
after `python -m experiments.run`; of any other command of Python's it completes file names.
"""

from experiments.common.errors import BadInputError

_SHELLS = {"bash": "", "zsh": "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"}
_SCRIPT = r"""_bilevel_run() {
  local line="${COMP_LINE:0:$COMP_POINT}" python words word
  COMPREPLY=()
  python="${line%% -m experiments.run *}"
  [ "$python" = "$line" ] && return
  line="${line#* -m experiments.run }"
  word="${line##* }"
  words="$(COMP_LINE="run $line" $python -m experiments.run -sc query=bash 2>/dev/null)"
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # bash takes what stands before = for a word of its own, unless told otherwise.
  case "$word$COMP_WORDBREAKS" in
    *=*=*) COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}") ;;
  esac
}
complete -o nospace -o default -F _bilevel_run python python3
"""
_REMOVE = "complete -r python python3\nunset -f _bilevel_run\n"


def asked(arguments: list[str]) -> bool:
    """Whether the command line asks for the script, to install it or to take it back."""
    flagged = any(argument in ("-sc", "--shell-completion") for argument in arguments)
    return flagged and not any(argument.startswith("query=") for argument in arguments)


def answer(arguments: list[str]) -> str:
    """What the shell is to evaluate.

    Raises
    ------
    BadInputError : another shell, or neither `install` nor `uninstall`.
    """
    action, _, shell = next((a for a in arguments if "=" in a), "=").partition("=")
    if action not in ("install", "uninstall") or shell not in _SHELLS:
        raise BadInputError(
            f"-sc: expected install=bash, install=zsh or uninstall of one, got {action}={shell}"
        )
    return _SHELLS[shell] + _SCRIPT if action == "install" else _REMOVE
