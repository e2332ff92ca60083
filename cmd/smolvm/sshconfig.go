package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

// sshEntry is how a VM is reached by SSH, in the output for programs. Its field names are a
// contract.
type sshEntry struct {
	VM string `json:"vm"`
	smolvm.SSHAccess
	Proxy []string `json:"proxy_command"` // with its arguments
}

func newSSHConfigCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-config [VM...]",
		Short: "Print an OpenSSH configuration that reaches VMs",
		Long: `Print an OpenSSH configuration with which ssh, scp, sftp, rsync and editors reach VMs,
all or those that are named, as smolvm-NAME and as NAME.smolvm. No port is opened for
it: ssh speaks to the guest through smolvm proxy.`,
		Example: `  smolvm ssh-config > ~/.ssh/smolvm.conf   # and begin ~/.ssh/config with: Include smolvm.conf
  ssh smolvm-web
  rsync -a site/ smolvm-web:/srv/www/
  smolvm ssh-config web > web.conf && ssh -F web.conf smolvm-web`,
		Args:              argsOfUse,
		ValidArgsFunction: g.completeVMs(0, nil),
	}
	jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		entries, err := g.sshEntries(cmd.Context(), names)
		switch {
		case err != nil:
			return err
		case g.json:
			return printJSON(cmd.OutOrStdout(), entries)
		}
		config := sshConfigHeader
		for _, e := range entries {
			host, err := e.config()
			if err != nil {
				return &vmError{e.VM, err}
			}
			config += "\n" + host
		}
		_, err = io.WriteString(cmd.OutOrStdout(), config)
		return err
	}
	return cmd
}

// sshEntries are how VMs are reached: all of them, if none is named.
func (g *globals) sshEntries(ctx context.Context, names []string) ([]sshEntry, error) {
	proxy, err := g.proxyCommand()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		if names, err = g.names(ctx); err != nil {
			return nil, err
		}
	}
	entries := make([]sshEntry, len(names))
	for i, name := range names {
		err := g.with(ctx, name, func(vm *smolvm.VM) error {
			access, err := vm.SSH(ctx)
			entries[i] = sshEntry{name, access, append(slices.Clone(proxy), name)}
			return err
		})
		if err != nil {
			return nil, &vmError{name, err}
		}
	}
	return entries, nil
}

const sshConfigHeader = `# How OpenSSH reaches VMs of smolvm. To use it:
#   smolvm ssh-config > ~/.ssh/smolvm.conf
# and begin ~/.ssh/config with the line:
#   Include smolvm.conf
# It holds for the VMs that there were at that time.
`

// names are those of all VMs whose records can be read.
func (g *globals) names(ctx context.Context) ([]string, error) {
	infos, err := g.list(ctx)
	var names []string
	for _, vm := range infos {
		if vm.Status == "" {
			fmt.Fprintf(os.Stderr, "smolvm: %s\n", plain(fmt.Sprintf("left out VM %s: %v", vm.Name, vm.Err)))
			continue
		}
		names = append(names, vm.Name)
	}
	return names, err
}

// proxyCommand is how this program is to be run again, up to the name of a VM.
func (g *globals) proxyCommand() ([]string, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	command := []string{program}
	if g.dataDir != "" {
		dir, err := filepath.Abs(g.dataDir)
		if err != nil {
			return nil, fmt.Errorf("find data directory: %w", err)
		}
		command = append(command, "--data-dir", dir)
	}
	return append(command, "proxy"), nil
}

// config is what an OpenSSH configuration says of the VM. What a guest could do to an SSH client
// that trusts it is turned off: a guest is not to be trusted.
func (e sshEntry) config() (string, error) {
	command := make([]string, len(e.Proxy))
	for i, word := range e.Proxy {
		command[i] = shellQuoted(word)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Host smolvm-%s %s.smolvm\n", e.VM, e.VM)
	for _, option := range [][2]string{
		{"HostName", e.VM + ".smolvm"},
		{"User", e.User},
		{"IdentityFile", sshQuoted(e.IdentityFile)},
		{"IdentitiesOnly", "yes"},
		{"UserKnownHostsFile", sshQuoted(e.KnownHostsFile)},
		{"HostKeyAlias", e.HostKeyAlias},
		{"StrictHostKeyChecking", "yes"},
		{"UpdateHostKeys", "no"},
		{"ForwardAgent", "no"},
		{"ForwardX11", "no"},
		{"ProxyCommand", strings.ReplaceAll(strings.Join(command, " "), "%", "%%")},
	} {
		if strings.ContainsFunc(option[1], unicode.IsControl) {
			return "", fmt.Errorf("an OpenSSH configuration cannot have %q as its %s: no path may have such a character", option[1], option[0])
		}
		fmt.Fprintf(&b, "    %s %s\n", option[0], option[1])
	}
	return b.String(), nil
}

// sshQuoted writes a path as OpenSSH's configuration has it.
func sshQuoted(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(path) + `"`
}

// shellQuoted writes a word as a shell has it.
func shellQuoted(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
