from django.db import migrations

from pgworkflows.contrib.django.operations import Apply


class Migration(migrations.Migration):
    dependencies = [("pgworkflows", "0011_results")]
    operations = [Apply("0012_prompt_starts")]
