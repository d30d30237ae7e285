package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/sampan-cloud/sampan/internal/doctor"
)

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	var dataRoot string
	cmd := &cobra.Command{
		Use:   "doctor [OPTIONS]",
		Short: "Look at this host: what Sampan needs of it, what is there, what to do",
		Long: `Look at this host: what Sampan needs of it, what is there, what is used instead of
what is not, and what to do about it. Nothing is changed. Run it as root: some
features can only be tried then. The exit code is 1 when something is missing
without which Sampan does not work.`,
		Args:        cli.NoArgs,
		Annotations: map[string]string{"category-top": "20"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := doctor.This(dataRoot).Examine()
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(findings); err != nil {
					return err
				}
			} else if err := printFindings(cmd.OutOrStdout(), findings); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Fatal() {
					return cli.StatusError{StatusCode: 1}
				}
			}
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print the findings as JSON")
	cmd.Flags().StringVar(&dataRoot, "data-root", "/var/lib/sampan", "Where sampand keeps its data")
	return cmd
}

// printFindings writes a table of the findings, then what to do, then a verdict.
func printFindings(out io.Writer, findings []doctor.Finding) error {
	tw := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	instead := slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Instead != "" })
	row := func(cells ...string) {
		if !instead {
			cells = cells[:3]
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	row("CHECK", "STATUS", "FOUND", "USED INSTEAD")
	fatal, notes := 0, 0
	for _, f := range findings {
		status := string(f.Status)
		if f.Fatal() {
			status, fatal = "MISSING", fatal+1
		} else if f.Status != doctor.OK {
			notes++
		}
		row(f.Name, status, f.Found, f.Instead)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if fatal+notes > 0 {
		fmt.Fprintln(out, "\nWhat to do:")
		for _, f := range findings {
			if f.Advice != "" {
				fmt.Fprintf(out, "  %s: %s\n", f.Name, f.Advice)
			}
		}
	}
	switch {
	case fatal > 0:
		fmt.Fprintf(out, "\nSampan cannot work on this host yet: %d missing.\n", fatal)
	case notes > 0:
		fmt.Fprintf(out, "\nSampan works on this host; remarks: %d.\n", notes)
	default:
		fmt.Fprintln(out, "\nSampan works on this host.")
	}
	return nil
}
