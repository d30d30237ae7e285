package build

// HeaderRequest carries a Request, as JSON, to the builder. The body of that request is the context, if it has one.
const HeaderRequest = "X-Sampan-Build"

// Request is a build as /build asks for it. It has a field for each of the parameters that /build knows, which is why
// it is long.
type Request struct {
	Version     string // "1": the stream of the classic builder; "2": BuildKit's
	ID          string // for /build/cancel; "upload-request:ID" brings the context of the build ID
	Session     string // of the client, for version 2
	Remote      string // where the context is: a URL, "client-session", "upload-request"; empty: in the body
	Dockerfile  string
	Tags        []string
	Target      string
	Args        map[string]*string // nil: known to the client and not set
	Labels      map[string]string
	CacheFrom   []string
	NoCache     bool
	Pull        bool // look for newer images of FROM
	Quiet       bool
	Network     string // "", "default", "host", "none"
	ExtraHosts  []string
	Platform    string
	ShmSize     int64    // bytes
	Ulimits     []string // NAME=SOFT:HARD
	Parent      string   // control group above steps
	CPUPeriod   int64
	CPUQuota    int64
	CPUShares   uint64
	CPUSetCPUs  string
	CPUSetMems  string
	Memory      int64 // bytes
	MemorySwap  int64 // bytes
	Outputs     []Output
	Credentials map[string]Credentials // by registry
}

// Output is where the result of a build goes: Docker's --output.
type Output struct {
	Type  string
	Attrs map[string]string
}

// Credentials are those of one registry.
type Credentials struct {
	Username, Password, IdentityToken, RegistryToken string
}
