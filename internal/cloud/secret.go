package cloud

// Secret is a blob that only the nodes whose tasks use it receive.
type Secret struct {
	Meta
	Spec SecretSpec `json:"spec"`
}

// SecretSpec names and holds a secret. Data is at most 500 KiB.
type SecretSpec struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Data   []byte            `json:"data,omitempty"`
}

// Config is a blob that is no secret.
type Config struct {
	Meta
	Spec SecretSpec `json:"spec"`
}
