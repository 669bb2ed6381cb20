package config

import _ "embed"

//go:embed virt-ft.toml
var example string

// Example returns a configuration file that documents every key, each
// commented out and showing its default.
func Example() string { return example }
