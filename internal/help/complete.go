package help

import (
	"fmt"
	"strings"
)

// Completions returns one script for each of bash, zsh and fish, under the names
// that those look for.
func Completions(p *Program) []File {
	return []File{{p.Name, p.bash()}, {"_" + p.Name, p.zsh()}, {p.Name + ".fish", p.fish()}}
}

func (p *Program) bash() string {
	var cases strings.Builder
	for i := range p.Commands {
		c := &p.Commands[i]
		var words, values, paths []string
		for _, f := range c.Flags {
			words = append(words, f.spellings()...)
			switch {
			case f.takesPath():
				paths = append(paths, f.spellings()...)
			case f.Value != "":
				values = append(values, f.spellings()...)
			}
		}
		words = append(words, "--help")
		fmt.Fprintf(&cases, "    %s) words='%s' paths=' %s ' values=' %s ' ;;\n", c.Name,
			strings.Join(words, " "), strings.Join(paths, " "), strings.Join(values, " "))
	}
	return fmt.Sprintf(`# bash completion for %[1]s
_%[1]s() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words='' paths='' values=''
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W '%[2]s --help --version' -- "$cur")
    return
  fi
  case ${COMP_WORDS[1]} in
%[3]s    *) return ;;
  esac
  if [[ $paths == *" $prev "* ]]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
  elif [[ $cur == -* && $values != *" $prev "* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
  fi
}
complete -F _%[1]s %[1]s
`, p.Name, strings.Join(p.names(), " "), cases.String())
}

func (p *Program) zsh() string {
	var list, cases strings.Builder
	for i := range p.Commands {
		c := &p.Commands[i]
		fmt.Fprintf(&list, "    %s\n", quote(c.Name+":"+strings.ReplaceAll(c.Summary, ":", `\:`)))
		fmt.Fprintf(&cases, "    %s) _arguments -s", c.Name)
		for _, f := range c.Flags {
			cases.WriteString(" \\\n      " + zshFlag(f))
		}
		cases.WriteString(" \\\n      '(- *)--help[say what it does]' ;;\n")
	}
	list.WriteString("    'help:list the commands'\n")
	return fmt.Sprintf(`#compdef %[1]s
# zsh completion for %[1]s
_%[1]s() {
  local -a commands
  commands=(
%[2]s  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  ((CURRENT--))
  case $command in
%[3]s  esac
}
_%[1]s "$@"
`, p.Name, list.String(), cases.String())
}

// zshFlag is one argument of _arguments.
func zshFlag(f Flag) string {
	about := strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`).Replace(f.text())
	value := ""
	switch {
	case f.takesPath():
		value = ":" + f.Value + ":_files"
	case f.Value != "":
		value = ":" + f.Value + ": "
	}
	if f.Short == "" {
		return quote("--" + f.Name + "[" + about + "]" + value)
	}
	// The shell expands the braces to one argument a spelling.
	return fmt.Sprintf("'(-%[1]s --%[2]s)'{-%[1]s,--%[2]s}%[3]s", f.Short, f.Name, quote("["+about+"]"+value))
}

func (p *Program) fish() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# fish completion for %[1]s\ncomplete -c %[1]s -f\n", p.Name)
	for i := range p.Commands {
		c := &p.Commands[i]
		fmt.Fprintf(&b, "complete -c %s -n __fish_use_subcommand -a %s -d %s\n", p.Name, c.Name, fishQuote(c.Summary))
		for _, f := range c.Flags {
			fmt.Fprintf(&b, "complete -c %s -n '__fish_seen_subcommand_from %s' -l %s", p.Name, c.Name, f.Name)
			if f.Short != "" {
				b.WriteString(" -s " + f.Short)
			}
			switch {
			case f.takesPath():
				b.WriteString(" -r -F")
			case f.Value != "":
				b.WriteString(" -x")
			}
			b.WriteString(" -d " + fishQuote(f.text()) + "\n")
		}
		fmt.Fprintf(&b, "complete -c %s -n '__fish_seen_subcommand_from %s' -l help -d 'say what it does'\n", p.Name, c.Name)
	}
	fmt.Fprintf(&b, "complete -c %s -n __fish_use_subcommand -a help -d 'list the commands'\n", p.Name)
	return b.String()
}

// quote quotes s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// fishQuote quotes s for fish.
func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}
