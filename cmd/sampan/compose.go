package main

import (
	"github.com/docker/cli/cli/command"
	"github.com/docker/compose/v5/cmd/compose"
	"github.com/docker/compose/v5/cmd/prompt"
	backend "github.com/docker/compose/v5/pkg/compose"
	"github.com/spf13/cobra"
)

// newComposeCommand is Compose, taken whole as the library that its plugin for docker is made of.
func newComposeCommand(docker command.Cli) *cobra.Command {
	return compose.RootCommand(docker, &compose.BackendOptions{
		Options: []backend.Option{backend.WithPrompt(prompt.NewPrompt(docker.In(), docker.Out()).Confirm)},
	})
}
