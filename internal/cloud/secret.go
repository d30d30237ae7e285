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
	// Templating names the language in which Data is a template, filled for each task; nil: Data is as it is.
	Templating *Templating `json:"templating,omitempty"`
}

// Templating is a language of templates. TemplateGo is the only one.
type Templating struct {
	Name    string            `json:"name"`
	Options map[string]string `json:"options,omitempty"`
}

// TemplateGo is the language of Go's text/template, see (*TemplateContext).ExpandPayload.
const TemplateGo = "golang"

// Config is a blob that is no secret.
type Config struct {
	Meta
	Spec SecretSpec `json:"spec"`
}
